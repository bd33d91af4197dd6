// %%{title}: artifact %%{artifact}.
// Carried by the package product of the same name; to copy it instead, add this file and the shared %%{prefix}*.swift
// files to the app target, %%{file_comment} to its resources, and onnxruntime's Swift package.

import Foundation
import OnnxRuntimeBindings
#if canImport(CryptoKit)
import CryptoKit
#endif
%%{imports}
/// Runs one file with onnxruntime. Tensors are row-major. Use one object for many inferences.
///
/// %%{provider_doc}
public final class %%{type} {
    /// The model's file name.
    public static let file = %%{file}

    /// The digest of the file that was validated; any other is refused.
    public static let sha256 = "%%{sha256}"

    /// The answer to one inference.
    public struct Outputs: Sendable {
%%{output_fields}
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
%%{provider_setup}
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: settings)
    }

    private static var bundle: Bundle {
        #if SWIFT_PACKAGE
        return Bundle.module
        #else
        return Bundle(for: %%{type}.self)
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
%%{classify}
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
