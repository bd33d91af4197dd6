// %%{title}: artifact %%{artifact}.
// Copy this file into your app if you like its types; the classes that it calls come with the dependency
// %%{coordinates}.
package %%{package}

/**
 * Runs one file with onnxruntime. One object may serve several threads; close it when done.
 *
 * `model` holds the bytes of the asset, which must be those that were validated:
 * `context.assets.open(%%{type}.ASSET).use { it.readBytes() }`.
 * %%{provider_doc}
 */
class %%{type}(model: ByteArray%%{provider_parameters}) : AutoCloseable {
    /** The answer to one inference. Tensors are row-major; float16 and one-byte types are raw bytes. */
    class Outputs(
%%{output_fields}
    )

    private val session: OnnxModel = %%{open}

    /** Runs the model once. %%{run_doc} */
    fun run(%%{parameters}): Outputs {
        val results = session.run(mapOf(%%{feeds})%%{axes})
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
