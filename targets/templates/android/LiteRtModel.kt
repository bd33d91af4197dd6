// %%{title}: artifact %%{artifact}.
// Copy this file into your app if you like its types; the classes that it calls come with the dependency
// %%{coordinates}.
package %%{package}

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

/**
 * Runs one file with LiteRT. One object serves one thread at a time; close it when done.
 *
 * `model` is a direct buffer in native byte order, or a mapped one, of the asset, which must hold the bytes that were validated:
 * `context.assets.openFd(%%{type}.ASSET)` mapped by its channel, or the second constructor.
 * %%{provider_doc}
 */
class %%{type}(model: ByteBuffer, settings: Interpreter.Options) : AutoCloseable {
    /** The answer to one inference. Tensors are row-major; float16 and one-byte types are raw bytes. */
    class Outputs(
%%{output_fields}
    )

    private val session: LiteRtModel = LiteRtModel(model, settings)

    /** Runs on the CPU; `model` holds the bytes of the asset: `context.assets.open(ASSET).use { it.readBytes() }`. */
    constructor(model: ByteArray, threads: Int = 4) : this(
        ByteBuffer.allocateDirect(model.size).order(ByteOrder.nativeOrder()).apply {
            put(model)
            rewind()
        },
        Interpreter.Options().setNumThreads(threads)
    )

    /** Runs the model once. %%{run_doc} */
    fun run(%%{parameters}): Outputs {
        val results = session.run(mapOf(%%{feeds}))
        return Outputs(
%%{results}
        )
    }
%%{pictures}
    override fun close() {
        session.close()
    }

    companion object {
        /** The model's path among the app's assets. */
        const val ASSET: String = %%{asset}
    }
}
