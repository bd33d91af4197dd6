// %%{title}: artifact %%{artifact}.
// Add this file and %%{file_comment} to the app target: Xcode compiles the package into the bundle.

import CoreML

/// Runs one Core ML package. Tensors are row-major.
public final class %%{type} {
    /// The package's name without its extension.
    public static let resource = %%{resource}

    /// The answer to one inference.
    public struct Outputs {
%%{output_fields}
    }

    private let model: MLModel

    /// Loads the compiled package at `url`: `Bundle.main.url(forResource: resource, withExtension: "mlmodelc")`,
    /// or what `MLModel.compileModel(at:)` made of the `.mlpackage` on the device.
    public init(contentsOf url: URL, computeUnits: MLComputeUnits = .all) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        model = try MLModel(contentsOf: url, configuration: configuration)
    }

    /// Runs the model once. %%{run_doc}
    public func run(%%{parameters}) throws -> Outputs {
        let feeds = try MLDictionaryFeatureProvider(dictionary: [
%%{feeds}
        ])
        let results = try model.prediction(from: feeds)
        return Outputs(
%%{results}
        )
    }

    private static func tensor<Element>(
        _ values: [Element], _ shape: [NSNumber], _ type: MLMultiArrayDataType
    ) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: shape, dataType: type)
        guard array.count == values.count else {
            throw ShapeError(expected: array.count, given: values.count)
        }
        values.withUnsafeBytes { array.dataPointer.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        return array
    }

    /// Copies an output element by element: Core ML may pad its rows, and may answer in float16.
    private static func numbers(_ results: MLFeatureProvider, _ name: String) throws -> [NSNumber] {
        guard let array = results.featureValue(for: name)?.multiArrayValue else {
            throw MissingOutputError(name: name)
        }
        return (0..<array.count).map { array[$0] }
    }

    /// An input holds another number of values than its shape.
    public struct ShapeError: Error {
        public let expected: Int
        public let given: Int
    }

    /// The package has no output of that name.
    public struct MissingOutputError: Error {
        public let name: String
    }
}
