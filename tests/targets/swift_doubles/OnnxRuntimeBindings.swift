// What the generated Swift uses of onnxruntime's Objective-C interface (objectivec/include/*.h), for Linux. It is a double:
// signatures as Swift imports them, and a Python with the real onnxruntime behind them (`EDGE_INFER`).

import Foundation

public enum ORTLoggingLevel { case verbose, info, warning, error, fatal }
public enum ORTGraphOptimizationLevel { case none, basic, extended, all }
public enum ORTTensorElementDataType: String { case undefined, float, int8, uInt8, int32, uInt32, int64, uInt64, string }

public struct DoubleError: Error, CustomStringConvertible {
    public let description: String
    public init(description: String) { self.description = description }
}

public class ORTEnv {
    public init(loggingLevel: ORTLoggingLevel) throws {}
}

public class ORTRunOptions {}

public class ORTCoreMLExecutionProviderOptions {
    public var useCPUOnly = false
    public var onlyAllowStaticInputShapes = false
    public var createMLProgram = false
    public init() {}
}

public class ORTSessionOptions {
    public init() throws {}
    public func setIntraOpNumThreads(_ intraOpNumThreads: Int32) throws {}
    public func setGraphOptimizationLevel(_ graphOptimizationLevel: ORTGraphOptimizationLevel) throws {}
    public func appendCoreMLExecutionProvider(with options: ORTCoreMLExecutionProviderOptions) throws {}
}

public class ORTValue {
    let data: NSMutableData
    let type: ORTTensorElementDataType
    let shape: [NSNumber]

    public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {
        (data, type, self.shape) = (tensorData, elementType, shape)
    }

    public func tensorData() throws -> NSMutableData { data }
}

public class ORTSession {
    private let path: String

    public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?) throws {
        path = modelPath
    }

    public func run(
        withInputs inputs: [String: ORTValue], outputNames: Set<String>, runOptions: ORTRunOptions?
    ) throws -> [String: ORTValue] {
        let feeds = inputs.map { name, value -> [String: Any] in
            [
                "name": name, "dtype": value.type.rawValue, "shape": value.shape.map(\.intValue),
                "data": (value.data as Data).base64EncodedString(),
            ]
        }
        return try infer(["model": path, "inputs": feeds, "outputs": outputNames.sorted()]).mapValues {
            try ORTValue(tensorData: NSMutableData(data: $0), elementType: .float, shape: [])
        }
    }
}

/// Asks the program in `EDGE_INFER` (a Python and a script) for the outputs of one inference.
public func infer(_ request: [String: Any]) throws -> [String: Data] {
    let command = (ProcessInfo.processInfo.environment["EDGE_INFER"] ?? "").split(separator: " ").map(String.init)
    guard command.count > 1 else { throw DoubleError(description: "EDGE_INFER names no program") }
    let (process, question, answer) = (Process(), Pipe(), Pipe())
    process.executableURL = URL(fileURLWithPath: command[0])
    process.arguments = Array(command[1...])
    (process.standardInput, process.standardOutput) = (question, answer)
    try process.run()
    question.fileHandleForWriting.write(try JSONSerialization.data(withJSONObject: request))
    question.fileHandleForWriting.closeFile()
    let said = answer.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard process.terminationStatus == 0,
        let outputs = try JSONSerialization.jsonObject(with: said) as? [String: String]
    else { throw DoubleError(description: "the inference failed") }
    return try outputs.mapValues {
        guard let data = Data(base64Encoded: $0) else { throw DoubleError(description: "no base64") }
        return data
    }
}
