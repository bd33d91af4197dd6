// What the generated Swift uses of Core ML, for Linux: a double with Apple's signatures. `compileModel` copies the package,
// and a prediction is made by the ONNX file in `EDGE_CORE_ML_TWIN`, because nothing but Core ML runs a Core ML package.

import Foundation
import OnnxRuntimeBindings

public enum MLComputeUnits: Int { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
public enum MLMultiArrayDataType: Int { case double, float32, float16, int32 }

public class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public init() {}
}

public class MLMultiArray {
    public let shape: [NSNumber]
    public let dataType: MLMultiArrayDataType
    public let dataPointer: UnsafeMutableRawPointer
    public var count: Int { shape.reduce(1) { $0 * $1.intValue } }

    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
        (self.shape, self.dataType) = (shape, dataType)
        let count = shape.reduce(1) { $0 * $1.intValue }
        dataPointer = UnsafeMutableRawPointer.allocate(byteCount: max(1, count * 8), alignment: 16)
    }

    deinit { dataPointer.deallocate() }

    public subscript(index: Int) -> NSNumber {
        NSNumber(value: dataPointer.assumingMemoryBound(to: Float.self)[index])
    }
}

public class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?
    public init(multiArray: MLMultiArray) { multiArrayValue = multiArray }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLFeatureValue]
    public var featureNames: Set<String> { Set(values.keys) }

    public init(dictionary: [String: Any]) throws {
        values = try dictionary.mapValues {
            guard let array = $0 as? MLMultiArray else { throw DoubleError(description: "not a multi-array") }
            return MLFeatureValue(multiArray: array)
        }
    }

    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

public class MLModel {
    public static func compileModel(at modelURL: URL) throws -> URL {
        let place = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).mlmodelc")
        try FileManager.default.copyItem(at: modelURL, to: place)
        return place
    }

    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {
        guard url.pathExtension == "mlmodelc",
            FileManager.default.fileExists(atPath: url.appendingPathComponent("Manifest.json").path)
        else { throw DoubleError(description: "\(url.path) is no compiled model") }
    }

    public func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider {
        let feeds = try input.featureNames.map { name -> [String: Any] in
            guard let array = input.featureValue(for: name)?.multiArrayValue else {
                throw DoubleError(description: "no array called \(name)")
            }
            let data = Data(bytes: array.dataPointer, count: array.count * 4)
            return [
                "name": name, "dtype": array.dataType == .int32 ? "int32" : "float",
                "shape": array.shape.map(\.intValue), "data": data.base64EncodedString(),
            ]
        }
        let twin = ProcessInfo.processInfo.environment["EDGE_CORE_ML_TWIN"] ?? ""
        let outputs = try infer(["model": twin, "inputs": feeds, "outputs": [String]()])
        return try MLDictionaryFeatureProvider(
            dictionary: outputs.mapValues { data in
                let array = try MLMultiArray(shape: [NSNumber(value: data.count / 4)], dataType: .float32)
                data.withUnsafeBytes { array.dataPointer.copyMemory(from: $0.baseAddress!, byteCount: data.count) }
                return array
            })
    }
}
