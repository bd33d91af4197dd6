// %%{model.name|comment} %%{model.version|comment}: artifact %%{model.spec}.
// Copy this file into your app if you like its types; the classes that it calls come with the dependency
// %%{model.coordinates}.
package %%{model.package}

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

/**
 * Runs one file with LiteRT. One object serves one thread at a time; close it when done.
 *
 * `model` is a direct buffer in native byte order, or a mapped one, of the asset, which must hold the bytes that were validated:
 * `context.assets.openFd(%%{type}.ASSET)` mapped by its channel, or the second constructor.
<% if "litert-gpu" in model.runtimes %>
 * GPU: `Interpreter.Options().addDelegate(org.tensorflow.lite.gpu.GpuDelegate())`.
<% else %>
 * CPU only: `Interpreter.Options().setNumThreads(4)`; the GPU delegate takes no integer files.
<% endif %>
 */
class %%{type}(model: ByteBuffer, settings: Interpreter.Options) : AutoCloseable {
<% include "android/_outputs.kt" %>

    private val session: LiteRtModel = LiteRtModel(model, settings)

    /** Runs on the CPU; `model` holds the bytes of the asset: `context.assets.open(ASSET).use { it.readBytes() }`. */
    constructor(model: ByteArray, threads: Int = 4) : this(
        ByteBuffer.allocateDirect(model.size).order(ByteOrder.nativeOrder()).apply {
            put(model)
            rewind()
        },
        Interpreter.Options().setNumThreads(threads)
    )

<% include "android/_members.kt" %>
