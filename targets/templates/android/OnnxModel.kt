// %%{title}: artifact %%{artifact}.
// Copy this file into your app and %%{file_comment} into its assets.
package %%{package}

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.DoubleBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import java.nio.ShortBuffer

/**
 * Runs one file with onnxruntime. One object serves one thread at a time; close it when done.
 *
 * `model` holds the bytes of the file: `context.assets.open(%%{type}.FILE).use { it.readBytes() }`.
 * %%{provider_doc}
 */
class %%{type}(model: ByteArray, threads: Int = 4%%{provider_parameter}) : AutoCloseable {
    /** The answer to one inference. Tensors are row-major; float16 and one-byte types are raw bytes. */
    class Outputs(
%%{output_fields}
    )

    private val environment: OrtEnvironment = OrtEnvironment.getEnvironment()
    private val session: OrtSession = OrtSession.SessionOptions().use { settings ->
        settings.setIntraOpNumThreads(threads)
%%{provider_setup}
        environment.createSession(model, settings)
    }

    /** Runs the model once. %%{run_doc} */
    fun run(%%{parameters}): Outputs {
        val feeds = LinkedHashMap<String, OnnxTensor>()
        try {
%%{feeds}
            session.run(feeds).use { results ->
                return Outputs(
%%{results}
                )
            }
        } finally {
            feeds.values.forEach { it.close() }
        }
    }

    override fun close() {
        session.close()
    }

    companion object {
        /** The model's file name. */
        const val FILE: String = %%{file}

        private fun tensorOf(results: OrtSession.Result, name: String): OnnxTensor =
            results.get(name).get() as OnnxTensor

        private fun bytes(values: ByteArray): ByteBuffer = ByteBuffer.wrap(values).order(ByteOrder.nativeOrder())
    }
}
