// %%{title}: artifact %%{artifact}.
// Add this file to the app target, %%{file_comment} to its resources, and the package of Package.swift.

import Foundation
import OnnxRuntimeBindings

/// Runs one file with onnxruntime. Tensors are row-major.
///
/// %%{provider_doc}
public final class %%{type} {
    /// The model's file name.
    public static let file = %%{file}

    /// The answer to one inference.
    public struct Outputs {
%%{output_fields}
    }

    private let environment: ORTEnv
    private let session: ORTSession

    /// Loads the model at `path`, for example `Bundle.main.path(forResource: file, ofType: nil)`.
    public init(path: String, threads: Int32 = 2) throws {
        environment = try ORTEnv(loggingLevel: .warning)
        let settings = try ORTSessionOptions()
        try settings.setIntraOpNumThreads(threads)
%%{provider_setup}
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: settings)
    }

    /// Runs the model once. %%{run_doc}
    public func run(%%{parameters}) throws -> Outputs {
        let feeds: [String: ORTValue] = [
%%{feeds}
        ]
        let results = try session.run(
            withInputs: feeds, outputNames: [%%{output_names}], runOptions: nil)
        return Outputs(
%%{results}
        )
    }

    private static func tensor<Element>(
        _ values: [Element], _ shape: [NSNumber], _ type: ORTTensorElementDataType
    ) throws -> ORTValue {
        let data = values.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress, length: $0.count) }
        return try ORTValue(tensorData: data, elementType: type, shape: shape)
    }

    private static func values<Element>(
        _ results: [String: ORTValue], _ name: String, as type: Element.Type
    ) throws -> [Element] {
        guard let value = results[name] else { throw MissingOutputError(name: name) }
        let data = try value.tensorData() as Data
        return data.withUnsafeBytes { Array($0.bindMemory(to: Element.self)) }
    }

    /// The model has no output of that name.
    public struct MissingOutputError: Error {
        public let name: String
    }
}
