// %%{title}: artifact %%{artifact}. For src/androidTest: it runs on the phone.
// Its classes come with androidTestImplementation("%%{golden_coordinates}").
package %%{package}

%%{imports}import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertEquals
import org.junit.Test

/** Replays the golden vectors: the phone's own decoder, the preprocessing, the model; what went otherwise is named. */
class %%{type}GoldenTest {
%%{pictures_test}    @Test
    fun answersAsInTheBuild() {
        val asset = InstrumentationRegistry.getInstrumentation().targetContext.assets.open(%%{type}.ASSET)
        val mistakes = %%{type}(asset.use { it.readBytes() }).use { model ->
            GoldenVectors.read().answerMistakes { inputs, %%{axes_name} ->
                val answer = model.run(%%{arguments})
                mapOf(%%{answers})
            }
        }
        assertEquals("", mistakes.joinToString("\n"))
    }
}
