// %%{model.name|comment} %%{model.version|comment}: artifact %%{model.spec}. For src/androidTest: it runs on the phone.
// Its classes come with androidTestImplementation("%%{model.golden_coordinates}").
package %%{model.package}

<% if model.takes_pictures %>
import android.graphics.BitmapFactory
<% endif %>
import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertEquals
import org.junit.Test

/** Replays the golden vectors: the phone's own decoder, the preprocessing, the model; what went otherwise is named. */
class %%{type}GoldenTest {
<% if model.takes_pictures %>
    @Test
    fun preparesPicturesAsCalibrationDid() {
        val mistakes = GoldenVectors.read().preparationMistakes(
            { png ->
                val bitmap = BitmapFactory.decodeByteArray(png, 0, png.size)
                val argb = IntArray(bitmap.width * bitmap.height)
                bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
                Picture(argb, bitmap.width, bitmap.height)
            },
            // Put the app's own way from pixels to the tensor here, where it does not use Preprocessing.
            { argb, width, height -> Preprocessing.tensor(argb, width, height) }
        )
        assertEquals("", mistakes.joinToString("\n"))
    }

<% endif %>
    @Test
    fun answersAsInTheBuild() {
        val asset = InstrumentationRegistry.getInstrumentation().targetContext.assets.open(%%{type}.ASSET)
        val mistakes = %%{type}(asset.use { it.readBytes() }).use { model ->
            GoldenVectors.read().answerMistakes { inputs, %%{"axes" if axes else "_"} ->
                val answer = model.run(
<%- set comma = joiner(", ") %>
<% for input in inputs %>%%{comma()}inputs.getValue(%%{input.spec.name|kotlin_string}) as %%{input.array}<% endfor %>
<% for axis in axes %>%%{comma()}axes.getValue(%%{axis|kotlin_string})<% endfor %>)
                mapOf(
<%- for output in outputs %>%%{output.spec.name|kotlin_string} to answer.%%{output.variable}%%{"" if loop.last else ", "}<% endfor %>)
            }
        }
        assertEquals("", mistakes.joinToString("\n"))
    }
}
