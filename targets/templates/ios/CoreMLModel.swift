// %%{card.name|comment} %%{card.version|comment}: artifact %%{model.artifact.spec}.
// Carried by the package product of the same name; to copy it instead, add this file, the shared %%{prefix}*.swift
// files and %%{model.artifact.path.name|comment} to the app target.

import Foundation
<% include "ios/_imports.swift" %>

#if canImport(CoreML)
import CoreML

/// Runs one Core ML package. Tensors are row-major. Use one object for many inferences; it may be used from any thread.
public final class %%{model.type} {
    /// The package's name without its extension.
    public static let resource = %%{model.artifact.path.stem|swift_string}

    /// The digest of the package that was validated, which also names its compiled form in the cache.
    public static let sha256 = "%%{model.artifact.sha256}"

    /// The answer to one inference.
    public struct Outputs: Sendable {
<% for output in model.outputs %>
        public let %%{output.variable}: [%%{output.element.answered}]
<% endfor %>
    }

    private let model: MLModel

    /// Loads the package that came with this code, which the first call on a device compiles: keep it off the main thread.
    public convenience init(computeUnits: MLComputeUnits = .all) throws {
        try self.init(contentsOf: try Self.compiled(), computeUnits: computeUnits)
    }

    /// Loads the compiled model (`.mlmodelc`) at `url`.
    public init(contentsOf url: URL, computeUnits: MLComputeUnits = .all) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        model = try MLModel(contentsOf: url, configuration: configuration)
    }

    /// Returns the compiled model: what Xcode compiled into the app, or what was compiled on this device before, or now.
    ///
    /// It is kept in the caches folder under the package's digest, so that a new version is compiled anew.
    public static func compiled() throws -> URL {
        if let ready = bundle.url(forResource: resource, withExtension: "mlmodelc") { return ready }
        guard let package = bundle.url(forResource: resource, withExtension: "mlpackage") else {
            throw %%{prefix}Error.missingFile("\(resource).mlpackage")
        }
        let files = FileManager.default
        let folder = try files.url(for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
            .appendingPathComponent("edge-models", isDirectory: true)
        let kept = folder.appendingPathComponent("\(sha256).mlmodelc", isDirectory: true)
        if files.fileExists(atPath: kept.path) { return kept }
        let fresh = try MLModel.compileModel(at: package)
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        do {
            try files.moveItem(at: fresh, to: kept)
        } catch where files.fileExists(atPath: kept.path) {
            // Another thread was first.
            try? files.removeItem(at: fresh)
        }
        return kept
    }

    private static var bundle: Bundle {
        #if SWIFT_PACKAGE
        return Bundle.module
        #else
        return Bundle(for: %%{model.type}.self)
        #endif
    }

<% include "ios/_run.swift" %>
        let feeds = try MLDictionaryFeatureProvider(dictionary: [
<% for input in model.inputs %>
            %%{input.spec.name|swift_string}: try Self.tensor(%%{input.spec.name|swift_string}, %%{input.variable}, [%%{input.spec.shape|join(", ")}], %%{input.element.core_ml})%%{"" if loop.last else ","}
<% endfor %>
        ])
        let results = try model.prediction(from: feeds)
        return Outputs(
<% for output in model.outputs %>
            %%{output.variable}: try Self.numbers(results, %%{output.spec.name|swift_string}).map { $0.%%{output.element.from_number} }%%{"" if loop.last else ","}
<% endfor %>
        )
    }
<% include "ios/_classify.swift" %>

    private static func tensor<Element>(
        _ name: String, _ values: [Element], _ shape: [NSNumber], _ type: MLMultiArrayDataType
    ) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: shape, dataType: type)
        guard array.count == values.count else {
            throw %%{prefix}Error.wrongSize(input: name, expected: array.count, given: values.count)
        }
        values.withUnsafeBytes { array.dataPointer.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        return array
    }

    /// Copies an output element by element: Core ML may pad its rows, and may answer in float16.
    private static func numbers(_ results: MLFeatureProvider, _ name: String) throws -> [NSNumber] {
        guard let array = results.featureValue(for: name)?.multiArrayValue else {
            throw %%{prefix}Error.missingOutput(name)
        }
        return (0..<array.count).map { array[$0] }
    }
}
#endif
