// %%{model.name|comment} %%{model.version|comment}: artifact %%{model.spec}.
// Copy this file into your app if you like its types; the classes that it calls come with the dependency
// %%{model.coordinates}.
package %%{model.package}

/**
 * Runs one file with onnxruntime. One object may serve several threads; close it when done.
 *
 * `model` holds the bytes of the asset, which must be those that were validated:
 * `context.assets.open(%%{type}.ASSET).use { it.readBytes() }`.
<% if opening == "npu" %>
 * Runs on the Snapdragon NPU; it needs the onnxruntime-android-qnn package.
<% elif opening == "xnnpack" %>
 * `useXnnpack` hands what XNNPACK takes to it; measure both ways on the phone.
<% else %>
 * Runs on the CPU.
<% endif %>
 */
class %%{type}(model: ByteArray
<%- if opening != "npu" %>, threads: Int = 4<% endif %>
<% if opening == "xnnpack" %>, useXnnpack: Boolean = false<% endif %>) : AutoCloseable {
<% include "android/_outputs.kt" %>

<% if opening == "npu" %>
    private val session: OnnxModel = OnnxModel.onSnapdragonNpu(model)
<% elif opening == "xnnpack" %>
    private val session: OnnxModel = if (useXnnpack) OnnxModel.onXnnpack(model, threads) else OnnxModel.onCpu(model, threads)
<% else %>
    private val session: OnnxModel = OnnxModel.onCpu(model, threads)
<% endif %>

<% include "android/_members.kt" %>
