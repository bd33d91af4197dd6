// %%{card.name|comment} %%{card.version|comment}: artifact %%{model.artifact.spec}.
// Carried by the package product of the same name; to copy it instead, add this file and the shared %%{prefix}*.swift
// files to the app target, %%{model.artifact.path.name|comment} to its resources, and onnxruntime's Swift package.

import Foundation
import OnnxRuntimeBindings
#if canImport(CryptoKit)
import CryptoKit
#endif
<% include "ios/_imports.swift" %>

/// Runs one file with onnxruntime. Tensors are row-major. Use one object for many inferences.
///
<% if model.uses_core_ml %>
/// What Core ML takes runs there, in ML Program format; the rest runs on the CPU.
<% else %>
/// Runs on the CPU: the Core ML provider would split a quantised or dynamic graph into pieces.
<% endif %>
public final class %%{model.type} {
    /// The model's file name.
    public static let file = %%{model.artifact.path.name|swift_string}

    /// The digest of the file that was validated; any other is refused.
    public static let sha256 = "%%{model.artifact.sha256}"

    /// The answer to one inference.
    public struct Outputs: Sendable {
<% for output in model.outputs %>
        public let %%{output.variable}: [%%{output.element.answered}]
<% endfor %>
    }

    private let environment: ORTEnv
    private let session: ORTSession

    /// Loads the file that came with this code.
    public convenience init(threads: Int32 = 2) throws {
        guard let path = Self.bundle.path(forResource: Self.file, ofType: nil) else {
            throw %%{prefix}Error.missingFile(Self.file)
        }
        try self.init(path: path, threads: threads)
    }

    /// Loads the file at `path`, which must hold the bytes that were validated.
    public init(path: String, threads: Int32 = 2) throws {
        try Self.requireSound(path)
        environment = try ORTEnv(loggingLevel: .warning)
        let settings = try ORTSessionOptions()
        try settings.setIntraOpNumThreads(threads)
<% if model.uses_core_ml %>
        let coreML = ORTCoreMLExecutionProviderOptions()
        coreML.createMLProgram = true
        coreML.onlyAllowStaticInputShapes = true
        try settings.appendCoreMLExecutionProvider(with: coreML)
<% else %>
        try settings.setGraphOptimizationLevel(.all)
<% endif %>
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: settings)
    }

    private static var bundle: Bundle {
        #if SWIFT_PACKAGE
        return Bundle.module
        #else
        return Bundle(for: %%{model.type}.self)
        #endif
    }

    private static func requireSound(_ path: String) throws {
        #if canImport(CryptoKit)
        let content = try Data(contentsOf: URL(fileURLWithPath: path), options: .mappedIfSafe)
        let found = SHA256.hash(data: content).map { String(format: "%02x", $0) }.joined()
        guard found == sha256 else {
            throw %%{prefix}Error.otherBytes(file: file, expected: sha256, found: found)
        }
        #endif
    }

<% include "ios/_run.swift" %>
        let feeds: [String: ORTValue] = [
<% for input in model.inputs %>
            %%{input.spec.name|swift_string}: try Self.tensor(%%{input.spec.name|swift_string}, %%{input.variable}, [
<%- for size in input.spec.shape %>%%{"NSNumber(value: " ~ model.axes[size].variable ~ ")" if size in model.axes else size}%%{"" if loop.last else ", "}<% endfor %>], %%{input.element.onnx})%%{"" if loop.last else ","}
<% endfor %>
        ]
        let results = try session.run(
            withInputs: feeds, outputNames: [
<%- for output in model.outputs %>%%{output.spec.name|swift_string}%%{"" if loop.last else ", "}<% endfor %>], runOptions: nil)
        return Outputs(
<% for output in model.outputs %>
            %%{output.variable}: try Self.values(results, %%{output.spec.name|swift_string}, as: %%{output.element.swift}.self)%%{"" if loop.last else ","}
<% endfor %>
        )
    }
<% include "ios/_classify.swift" %>

    private static func tensor<Element>(
        _ name: String, _ values: [Element], _ shape: [NSNumber], _ type: ORTTensorElementDataType
    ) throws -> ORTValue {
        let expected = shape.reduce(1) { $0 * $1.intValue }
        guard values.count == expected else {
            throw %%{prefix}Error.wrongSize(input: name, expected: expected, given: values.count)
        }
        let data = values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
        return try ORTValue(tensorData: data, elementType: type, shape: shape)
    }

    private static func values<Element>(
        _ results: [String: ORTValue], _ name: String, as type: Element.Type
    ) throws -> [Element] {
        guard let value = results[name] else { throw %%{prefix}Error.missingOutput(name) }
        let data = try value.tensorData() as Data
        return data.withUnsafeBytes { Array($0.bindMemory(to: Element.self)) }
    }
}
