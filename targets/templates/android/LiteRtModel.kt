// %%{title}: artifact %%{artifact}.
// Copy this file into your app and %%{file_comment} into its assets.
package %%{package}

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

/**
 * Runs one file with LiteRT. One object serves one thread at a time; close it when done.
 *
 * `model` is a direct or mapped buffer of the file: open the asset with `assets.openFd(%%{type}.FILE)` and map it.
 * %%{provider_doc}
 */
class %%{type}(model: ByteBuffer, settings: Interpreter.Options = Interpreter.Options()) : AutoCloseable {
    /** The answer to one inference. Tensors are row-major; float16 and one-byte types are raw bytes. */
    class Outputs(
%%{output_fields}
    )

    private val interpreter: Interpreter = Interpreter(model, settings)

    /** Runs the model once. %%{run_doc} */
    fun run(%%{parameters}): Outputs {
        val feeds: Map<String, Any> = mapOf(
%%{feeds}
        )
        val buffers: Map<String, ByteBuffer> = mapOf(
%%{buffers}
        )
        interpreter.runSignature(feeds, buffers)
        return Outputs(
%%{results}
        )
    }

    override fun close() {
        interpreter.close()
    }

    companion object {
        /** The model's file name. */
        const val FILE: String = %%{file}

        private fun direct(size: Int): ByteBuffer = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())

        /** Returns a direct buffer of `size` bytes that `fill` has written; fails if it does not fill it. */
        private fun filled(name: String, size: Int, given: Int, fill: (ByteBuffer) -> Unit): ByteBuffer {
            require(size == given) { "input $name takes $size bytes, not $given" }
            return direct(size).also { buffer ->
                fill(buffer)
                buffer.rewind()
            }
        }

        private fun answer(buffers: Map<String, ByteBuffer>, name: String): ByteBuffer {
            val buffer = buffers.getValue(name)
            buffer.rewind()
            return buffer
        }
    }
}
