// %%{title}: from picture to tensor, the contract of preprocess.json.
package %%{package}

/**
 * Turns a picture into the tensor that the model was calibrated on.
 *
 * Resampling follows Pillow's (area-aware, 22-bit fixed point, horizontal then vertical), because a platform's
 * own scaler gives other pixels. Turn the picture upright by its EXIF tag first.
 */
object %%{type} {
    const val WIDTH: Int = %%{width}
    const val HEIGHT: Int = %%{height}
    private const val COLOR: String = "%%{color}"
    private const val LAYOUT: String = "%%{layout}"
    private const val RESIZE: String = "%%{resize}"
    private const val FIT: String = "%%{fit}"
    private const val PAD: Int = %%{pad}
    private const val SCALE: Double = %%{scale}
    private val MEAN: DoubleArray = doubleArrayOf(%%{mean})
    private val STD: DoubleArray = doubleArrayOf(%%{std})
    private val CHANNELS: Int = if (COLOR == "L") 1 else 3
    private const val PRECISION_BITS: Int = 22

    /** Interleaved 8-bit pixels, `channels` values each. */
    private class Pixels(val width: Int, val height: Int, val channels: Int) {
        val values: IntArray = IntArray(width * height * channels)
    }

    /**
     * Returns the tensor for one picture, in the layout of the contract.
     *
     * `argb` holds one Int a pixel, 0xAARRGGBB, rows from the top, as `Bitmap.getPixels` gives them.
     */
    fun tensor(argb: IntArray, width: Int, height: Int): %%{array} {
        require(width > 0 && height > 0 && argb.size == width * height) { "argb does not hold $width x $height pixels" }
        val fitted = fit(flatten(argb, width, height))
        val tensor = %%{array}(WIDTH * HEIGHT * CHANNELS)
        for (pixel in 0 until WIDTH * HEIGHT) {
            for (channel in 0 until CHANNELS) {
                val source = if (COLOR == "BGR") CHANNELS - 1 - channel else channel
                val value = (fitted.values[pixel * CHANNELS + source] * SCALE - MEAN[channel]) / STD[channel]
                val index = if (LAYOUT == "NCHW") channel * WIDTH * HEIGHT + pixel else pixel * CHANNELS + channel
                tensor[index] = %%{cast}
            }
        }
        return tensor
    }

    private fun flatten(argb: IntArray, width: Int, height: Int): Pixels {
        val pixels = Pixels(width, height, CHANNELS)
        for (index in argb.indices) {
            val color = argb[index]
            val alpha = (color ushr 24) and 0xFF
            val red = overBlack((color ushr 16) and 0xFF, alpha)
            val green = overBlack((color ushr 8) and 0xFF, alpha)
            val blue = overBlack(color and 0xFF, alpha)
            if (CHANNELS == 1) {
                pixels.values[index] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) shr 16
            } else {
                pixels.values[index * 3] = red
                pixels.values[index * 3 + 1] = green
                pixels.values[index * 3 + 2] = blue
            }
        }
        return pixels
    }

    private fun overBlack(value: Int, alpha: Int): Int {
        if (alpha == 255) return value
        val product = value * alpha * 128 + 0x4000
        return (((product shr 8) + product) shr 8) shr 7
    }

    private fun fit(pixels: Pixels): Pixels {
        if (FIT == "stretch") return resize(pixels, WIDTH, HEIGHT)
        val across = WIDTH.toDouble() / pixels.width
        val down = HEIGHT.toDouble() / pixels.height
        val ratio = if (FIT == "crop") Math.max(across, down) else Math.min(across, down)
        val scaled = resize(pixels, scaledSide(pixels.width, ratio, WIDTH), scaledSide(pixels.height, ratio, HEIGHT))
        val left = Math.floorDiv(WIDTH - scaled.width, 2)
        val top = Math.floorDiv(HEIGHT - scaled.height, 2)
        val placed = Pixels(WIDTH, HEIGHT, pixels.channels)
        placed.values.fill(PAD)
        for (y in Math.max(0, top) until Math.min(HEIGHT, top + scaled.height)) {
            for (x in Math.max(0, left) until Math.min(WIDTH, left + scaled.width)) {
                for (channel in 0 until pixels.channels) {
                    placed.values[(y * WIDTH + x) * pixels.channels + channel] =
                        scaled.values[((y - top) * scaled.width + x - left) * pixels.channels + channel]
                }
            }
        }
        return placed
    }

    private fun scaledSide(side: Int, ratio: Double, wanted: Int): Int {
        val scaled = Math.rint(side * ratio).toInt()
        return if (FIT == "crop") Math.max(scaled, wanted) else Math.max(1, Math.min(scaled, wanted))
    }

    private fun resize(pixels: Pixels, width: Int, height: Int): Pixels {
        if (RESIZE == "nearest") return nearest(pixels, width, height)
        val wide = if (width == pixels.width) pixels else resample(pixels, width, true)
        return if (height == pixels.height) wide else resample(wide, height, false)
    }

    private fun nearest(pixels: Pixels, width: Int, height: Int): Pixels {
        val result = Pixels(width, height, pixels.channels)
        val columns = nearestIndices(pixels.width, width)
        val rows = nearestIndices(pixels.height, height)
        for (y in 0 until height) {
            for (x in 0 until width) {
                for (channel in 0 until pixels.channels) {
                    result.values[(y * width + x) * pixels.channels + channel] =
                        pixels.values[(rows[y] * pixels.width + columns[x]) * pixels.channels + channel]
                }
            }
        }
        return result
    }

    private fun nearestIndices(from: Int, to: Int): IntArray {
        val step = from.toDouble() / to
        var position = step * 0.5
        return IntArray(to) {
            val index = Math.min(from - 1, position.toInt())
            position += step
            index
        }
    }

    private fun resample(pixels: Pixels, size: Int, horizontal: Boolean): Pixels {
        val from = if (horizontal) pixels.width else pixels.height
        val result = if (horizontal) Pixels(size, pixels.height, pixels.channels) else Pixels(pixels.width, size, pixels.channels)
        val lines = if (horizontal) pixels.height else pixels.width
        for (target in 0 until size) {
            val (first, weights) = weightsFor(target, from, size)
            for (line in 0 until lines) {
                for (channel in 0 until pixels.channels) {
                    var sum = 1 shl (PRECISION_BITS - 1)
                    for (offset in weights.indices) {
                        val at = if (horizontal) line * pixels.width + first + offset else (first + offset) * pixels.width + line
                        sum += pixels.values[at * pixels.channels + channel] * weights[offset]
                    }
                    val at = if (horizontal) line * size + target else target * pixels.width + line
                    result.values[at * pixels.channels + channel] = Math.max(0, Math.min(255, sum shr PRECISION_BITS))
                }
            }
        }
        return result
    }

    /** Returns the first source index of output `target` and the fixed-point weights from there on. */
    private fun weightsFor(target: Int, from: Int, to: Int): Pair<Int, IntArray> {
        val scale = from.toDouble() / to
        val filterScale = Math.max(scale, 1.0)
        val support = (if (RESIZE == "bicubic") 2.0 else 1.0) * filterScale
        val center = (target + 0.5) * scale
        val first = Math.max(0, (center - support + 0.5).toInt())
        val last = Math.min(from, (center + support + 0.5).toInt())
        val weights = DoubleArray(last - first) { kernel((it + first - center + 0.5) * (1.0 / filterScale)) }
        val total = weights.sum()
        return Pair(first, IntArray(weights.size) {
            val scaled = weights[it] / total * (1 shl PRECISION_BITS)
            if (scaled < 0) (scaled - 0.5).toInt() else (scaled + 0.5).toInt()
        })
    }

    private fun kernel(distance: Double): Double {
        val x = Math.abs(distance)
        if (RESIZE != "bicubic") return if (x < 1.0) 1.0 - x else 0.0
        return when {
            x < 1.0 -> (1.5 * x - 2.5) * x * x + 1.0
            x < 2.0 -> ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
            else -> 0.0
        }
    }
}
