// %%{model.name|comment} %%{model.version|comment}: artifact %%{model.spec}. For src/test: it needs no phone.
// Its classes come with testImplementation("%%{model.golden_coordinates}").
package %%{model.package}

import org.junit.Assert.assertEquals
import org.junit.Test

/** Prepares the golden pictures as the app does; what calibration did otherwise is named. */
class %%{type}PicturesTest {
    @Test
    fun preparesPicturesAsCalibrationDid() {
        // Put the app's own way from pixels to the tensor here, where it does not use Preprocessing.
        val mistakes = GoldenVectors.read().preparationMistakes { argb, width, height ->
            Preprocessing.tensor(argb, width, height)
        }
        assertEquals("", mistakes.joinToString("\n"))
    }
}
