// %%{card.name|comment} %%{card.version|comment}: golden vectors. For tests only: link this product to a test target, never to the app.

import Foundation

/// Real inputs with the answers that were recorded when the model was built, to replay on a device.
public struct %%{prefix}Golden {
    /// One array, row-major.
    public struct Tensor: Sendable {
        public let shape: [Int]
        public let values: [Double]
    }

    /// One picture that a golden tensor was made from: four bytes a pixel, rows from the top.
    public struct Picture: Sendable {
        public let file: URL
        public let width: Int
        public let height: Int
        public let rgba: [UInt8]
    }

    /// One input with its answers: the float model's (`reference`), and by file those that the file gave in the build.
    public struct Sample: Sendable {
        public let number: Int
        public let inputs: [String: Tensor]
        public let reference: [String: Tensor]
        public let outputs: [String: [String: Tensor]]
        public let pictures: [String: Picture]

        /// Returns one input; throws if the sample has none of that name.
        public func input(_ name: String) throws -> Tensor {
            guard let tensor = inputs[name] else { throw GoldenError(what: "sample \(number) has no input \(name)") }
            return tensor
        }
    }

    /// Largest allowed differences: to the answer that the file gave in the build, and to the float model's.
    public struct Tolerance: Sendable {
        public let own: Double
        public let reference: Double
    }

    /// The golden vectors are damaged, or were never copied into the test bundle.
    public struct GoldenError: Error, CustomStringConvertible {
        public let what: String
        public var description: String { what }
    }

    /// What part of the float model's largest answer a file may differ by that did not run in the build.
    ///
    /// Core ML runs on Apple's systems only, so nobody measured it: this tells wrong bytes and wrong inputs, not accuracy.
    public static let unmeasuredShare = 0.25

    public let samples: [Sample]

    /// The codes of the preprocessing mistakes that these pictures can show.
    public let reveals: [String]

    /// By file; what did not run in the build has none.
    public let tolerances: [String: Tolerance]

    #if SWIFT_PACKAGE
    /// Returns the golden vectors that came with this code.
    public static func load() throws -> Self {
        guard let folder = Bundle.module.url(forResource: "golden", withExtension: nil) else {
            throw GoldenError(what: "golden/ is not among the package's resources")
        }
        return try Self(folder: folder)
    }
    #endif

    /// Reads `golden.json` and all that it names in `folder`.
    public init(folder: URL) throws {
        let document = try JSONDecoder().decode(
            Document.self, from: Data(contentsOf: folder.appendingPathComponent("golden.json")))
        func tensors(_ files: [String: String]) throws -> [String: Tensor] {
            try files.mapValues { try Self.tensor(folder.appendingPathComponent($0)) }
        }
        samples = try document.samples.enumerated().map { number, listed in
            Sample(
                number: number, inputs: try tensors(listed.inputs), reference: try tensors(listed.reference),
                outputs: try listed.outputs.mapValues(tensors),
                pictures: try (listed.raw ?? [:]).mapValues {
                    try Self.picture(folder.appendingPathComponent($0))
                })
        }
        reveals = document.reveals ?? []
        tolerances = (document.tolerance ?? [:]).mapValues {
            Tolerance(own: $0.own, reference: $0.reference)
        }
    }

    /// Returns what is wrong with the `answers` that `file` gave to `sample`, in sentences; empty when it passes.
    public func failures(of file: String, in sample: Sample, answers: [String: [Double]]) -> [String] {
        sample.reference.sorted { $0.key < $1.key }.flatMap { name, wanted -> [String] in
            guard let got = answers[name], got.count == wanted.values.count else {
                return ["\(name) has \(answers[name]?.count ?? 0) values instead of \(wanted.values.count)"]
            }
            let largest = wanted.values.map(abs).max() ?? 0
            let tolerance = tolerances[file]
            let allowed = tolerance?.reference ?? largest * Self.unmeasuredShare
            var found = Self.difference(got, wanted.values, allowed, "the float model's \(name)")
            if let own = sample.outputs[file]?[name], let tolerance {
                found += Self.difference(got, own.values, tolerance.own, "its own \(name) in the build")
            }
            return found
        }
    }

    private static func difference(_ got: [Double], _ wanted: [Double], _ allowed: Double, _ what: String) -> [String] {
        guard got.count == wanted.count else { return ["\(what) has \(wanted.count) values instead of \(got.count)"] }
        guard got.allSatisfy(\.isFinite) else { return ["an answer is not finite"] }
        let largest = zip(got, wanted).map { abs($0 - $1) }.max() ?? 0
        return largest <= allowed ? [] : ["differs from \(what) by \(largest), allowed are \(allowed)"]
    }

    private struct Document: Decodable {
        struct Listed: Decodable {
            let inputs: [String: String]
            let reference: [String: String]
            let outputs: [String: [String: String]]
            let raw: [String: String]?
        }

        struct Bounds: Decodable {
            let own: Double
            let reference: Double

            enum CodingKeys: String, CodingKey {
                case own = "max_abs"
                case reference = "max_abs_reference"
            }
        }

        let samples: [Listed]
        let tolerance: [String: Bounds]?
        let reveals: [String]?
    }

    /// Reads one `.npy` file: numpy's format 1 to 3, little-endian numbers in C order.
    static func tensor(_ url: URL) throws -> Tensor {
        let bytes = [UInt8](try Data(contentsOf: url))
        func damaged() -> GoldenError { GoldenError(what: "\(url.lastPathComponent) is no .npy array that this code reads") }
        guard bytes.count >= 12, bytes[0] == 0x93, bytes[1..<6].elementsEqual("NUMPY".utf8) else { throw damaged() }
        let start = bytes[6] == 1 ? 10 : 12
        let length = bytes[8..<start].reversed().reduce(0) { $0 << 8 | Int($1) }
        guard length <= bytes.count - start,
            let header = String(bytes: bytes[start..<(start + length)], encoding: .utf8),
            header.contains("'fortran_order': False"),
            let type = text(in: header, after: "'descr': '", before: "'"),
            let sides = text(in: header, after: "'shape': (", before: ")")
        else { throw damaged() }
        let shape = sides.split(separator: ",").compactMap { Int($0.filter { $0 != " " }) }
        guard let (size, read) = reader(type) else { throw damaged() }
        let count = shape.reduce(1, *)
        guard bytes.count - start - length == count * size else { throw damaged() }
        let values = (0..<count).map { index -> Double in
            let first = start + length + index * size
            return read(bytes[first..<(first + size)].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) })
        }
        return Tensor(shape: shape, values: values)
    }

    private static func text(in header: String, after prefix: String, before suffix: String) -> String? {
        guard let start = header.range(of: prefix) else { return nil }
        let rest = header[start.upperBound...]
        return rest.range(of: suffix).map { String(rest[..<$0.lowerBound]) }
    }

    /// Returns an element's size in bytes and what makes a number of its bits.
    private static func reader(_ type: String) -> (Int, (UInt64) -> Double)? {
        switch type {
        case "<f4": return (4, { Double(Float(bitPattern: UInt32($0))) })
        case "<f8": return (8, { Double(bitPattern: $0) })
        case "<f2": return (2, half)
        case "<i8": return (8, { Double(Int64(bitPattern: $0)) })
        case "<i4": return (4, { Double(Int32(bitPattern: UInt32($0))) })
        case "|i1": return (1, { Double(Int8(bitPattern: UInt8($0))) })
        case "|u1", "|b1": return (1, { Double($0) })
        default: return nil
        }
    }

    /// Returns the number of half precision (IEEE 754) with these bits: `Float16` does not exist on every Mac.
    private static func half(_ bits: UInt64) -> Double {
        let sign = bits & 0x8000 == 0 ? 1.0 : -1.0
        let exponent = Int(bits >> 10 & 0x1F)
        let fraction = Double(bits & 0x3FF)
        switch exponent {
        case 0: return sign * fraction * 0x1p-24
        case 31: return fraction == 0 ? sign * .infinity : .nan
        default: return sign * (1 + fraction / 1024) * Double(sign: .plus, exponent: exponent - 15, significand: 1)
        }
    }

    /// Reads one golden PNG: 8 bits, grey or RGB, stored without compression or filters, as this model's build wrote it.
    ///
    /// A platform's own decoder may convert colours on the way; these are the levels that the golden tensor was made from.
    static func picture(_ url: URL) throws -> Picture {
        let bytes = [UInt8](try Data(contentsOf: url))
        func damaged() -> GoldenError { GoldenError(what: "\(url.lastPathComponent) is no stored 8-bit PNG") }
        func number(_ start: Int) -> Int { bytes[start..<(start + 4)].reduce(0) { $0 << 8 | Int($1) } }
        guard bytes.count > 45, bytes[0..<8].elementsEqual([137, 80, 78, 71, 13, 10, 26, 10]) else { throw damaged() }
        let (width, height, kind) = (number(16), number(20), bytes[25])
        guard width > 0, height > 0, width < 1 << 15, height < 1 << 15, bytes[24] == 8, kind == 0 || kind == 2 else {
            throw damaged()
        }
        var stream = [UInt8]()
        var position = 8
        while position + 12 <= bytes.count {
            let length = number(position)
            guard length <= bytes.count - position - 12 else { throw damaged() }
            if bytes[(position + 4)..<(position + 8)].elementsEqual("IDAT".utf8) {
                stream += bytes[(position + 8)..<(position + 8 + length)]
            }
            position += 12 + length
        }
        let channels = kind == 0 ? 1 : 3
        let line = 1 + width * channels
        guard let lines = stored(stream), lines.count == height * line else { throw damaged() }
        var rgba = [UInt8](repeating: 255, count: 4 * width * height)
        for y in 0..<height {
            guard lines[y * line] == 0 else { throw damaged() }
            for x in 0..<width {
                for channel in 0..<3 {
                    rgba[4 * (y * width + x) + channel] = lines[y * line + 1 + x * channels + (channels == 1 ? 0 : channel)]
                }
            }
        }
        return Picture(file: url, width: width, height: height, rgba: rgba)
    }

    /// Returns the content of a zlib stream of stored blocks (RFC 1951, 3.2.4); nil for any other.
    private static func stored(_ stream: [UInt8]) -> [UInt8]? {
        var content = [UInt8]()
        var position = 2
        while position + 5 <= stream.count {
            let head = stream[position]
            let length = Int(stream[position + 1]) | Int(stream[position + 2]) << 8
            guard head <= 1, length <= stream.count - position - 5 else { return nil }
            content += stream[(position + 5)..<(position + 5 + length)]
            position += 5 + length
            if head == 1 { return content }
        }
        return nil
    }
}
