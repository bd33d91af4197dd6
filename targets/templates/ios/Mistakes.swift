// %%{card.name|comment} %%{card.version|comment}: what is wrong with a tensor that should have been made from a picture.

import Foundation

/// Names the usual mistakes of an app's own preprocessing from the numbers alone: red for blue answers plausibly.
///
/// The rules are those of `edge-export validate`: the golden tensor is changed as each mistake would change it, and the
/// first change that gives the app's tensor is the cause.
public enum %%{prefix}Mistakes {
    /// What was found: a code like `color`, `range` or `layout`, several joined by `+`, and a sentence for people.
    public struct Finding: Hashable, Sendable, CustomStringConvertible {
        public let code: String
        public let sentence: String

        /// Whether the picture was prepared as in calibration.
        public var isAgreement: Bool { code == "ok" }

        public var description: String { "\(code): \(sentence)" }
    }

    private static let width = %%{width}
    private static let height = %%{height}
    private static let channels = %%{1 if color == "L" else 3}
    private static let color = "%%{color}"
    private static let layout = "%%{layout}"
    private static let resizing = "%%{resize}/%%{fit}"
    private static let scale: Double = %%{scale}
    private static let mean: [Double] = [%%{mean|join(", ")}]
    private static let std: [Double] = [%%{std|join(", ")}]
    private static let limits: ClosedRange<Double>? = %%{limits[0] ~ "..." ~ limits[1] if limits else "nil"}

    /// Grey levels that two decoders may differ by; the thousandth is float32's own rounding.
    private static let agreeingLevels = 2.001

    /// Grey levels below which two tensors are the same.
    private static let sameLevels = 0.01

    /// An arithmetic from grey levels to values, (level * scale - mean) / std, and what is wrong with it.
    private struct Way {
        let code: String
        let says: String
        let scale: Double
        let mean: [Double]
        let std: [Double]

        static let right = Way(
            code: "", says: "", scale: %%{prefix}Mistakes.scale, mean: %%{prefix}Mistakes.mean,
            std: %%{prefix}Mistakes.std)

        static let wrong: [Way] = {
            let (nought, one) = ([Double](repeating: 0, count: channels), [Double](repeating: 1, count: channels))
            return [
                Way(
                    code: "range", says: "pixels are 0..255 where they should have been multiplied by %%{"%.6g"|format(scale)}",
                    scale: 1, mean: right.mean, std: right.std),
                Way(
                    code: "scaled-twice", says: "pixels were multiplied by %%{"%.6g"|format(scale)} twice",
                    scale: right.scale * right.scale, mean: right.mean, std: right.std),
                Way(
                    code: "normalisation", says: "mean and std were not applied", scale: right.scale, mean: nought,
                    std: one),
                Way(
                    code: "raw", says: "pixels are given as they are: neither scaled nor normalised", scale: 1,
                    mean: nought, std: one),
            ]
        }()

        /// Returns what one grey level is in `value` of a channel: at least one step of the tensor's numbers there.
        func level(at value: Double, _ channel: Int) -> Double {
            let level = abs(scale / std[channel])
            if limits == nil { return max(level, Double(Float(abs(value)).ulp)) }
            // What the steps of an integer tensor hide is hidden in everything that is computed from it.
            return max(level * max(abs(Way.right.std[channel] / Way.right.scale), 1), 1)
        }
    }

    /// A tensor as it lies in memory, and what one grey level is in each of its values.
    private struct Tensor {
        var values: [Double]
        var levels: [Double]

        func agrees(with others: [Double], within allowed: Double = agreeingLevels) -> Bool {
            values.indices.allSatisfy { abs(values[$0] - others[$0]) <= allowed * levels[$0] }
        }
    }

    /// One or several mistakes at once.
    private struct Mistake {
        let way: Way
        let isSwapped: Bool
        let isMoved: Bool

        var codes: [String] {
            (way.code.isEmpty ? [] : [way.code]) + (isSwapped ? ["color"] : []) + (isMoved ? ["layout"] : [])
        }

        var sentences: [String] {
            var said = way.code.isEmpty ? [] : [way.says]
            if isSwapped {
                said.append("channels are in the order \(String(color.reversed())) instead of \(color)")
            }
            if isMoved {
                said.append("the tensor is laid out \(layout == "NCHW" ? "NHWC" : "NCHW") instead of \(layout)")
            }
            return said
        }

        /// Returns the tensor of the picture whose grey levels (rows, columns, channels) are `pixels`.
        func tensor(of pixels: [Double]) -> Tensor {
            laidOut(way: way, isPlanar: (layout == "NCHW") != isMoved) { pixel, channel in
                let source = isSwapped ? channels - 1 - channel : channel
                return (pixels[pixel * channels + source] * way.scale - way.mean[channel]) / way.std[channel]
            }
        }
    }

    /// Every mistake: those of one cause before those of several.
    private static let mistakes: [Mistake] = {
        let swaps = channels == 3 ? [false, true] : [false]
        let moves = channels > 1 ? [false, true] : [false]
        let all = ([.right] + Way.wrong).flatMap { way in
            moves.flatMap { isMoved in swaps.map { Mistake(way: way, isSwapped: $0, isMoved: isMoved) } }
        }
        return (1...3).flatMap { count in all.filter { $0.codes.count == count } }
    }()

    /// Returns what is wrong with `got`, the app's tensor of a golden picture whose golden tensor is `expected`.
    ///
    /// `ok` when no value is more than two grey levels away; `resize` when no usual mistake explains the difference.
    public static func name(expected: [%%{element}], got: [%%{element}]) -> Finding {
        guard got.count == expected.count else {
            return Finding(
                code: "size", sentence: "the tensor has \(got.count) values, the model takes \(expected.count)")
        }
        let values = got.map { Double($0) }
        let broken = values.filter { !$0.isFinite }.count
        guard broken == 0 else {
            return Finding(
                code: "not-finite", sentence: "\(broken) of its \(got.count) values are not finite numbers")
        }
        let right = laidOut(way: .right, isPlanar: layout == "NCHW") { Double(expected[index($0, $1)]) }
        if right.agrees(with: values) {
            return Finding(code: "ok", sentence: "the tensor agrees with the golden one")
        }
        let pixels = pixels(of: expected)
        for mistake in mistakes {
            let wrong = mistake.tensor(of: pixels)
            // Under some contracts a mistake changes nothing, and on some pictures it does not show.
            if !right.agrees(with: wrong.values, within: sameLevels) && wrong.agrees(with: values) {
                return Finding(
                    code: mistake.codes.joined(separator: "+"),
                    sentence: mistake.sentences.joined(separator: "; and "))
            }
        }
        let distances = values.indices.map { abs(right.values[$0] - values[$0]) / right.levels[$0] }
        let average = distances.reduce(0, +) / Double(max(distances.count, 1))
        return Finding(
            code: "resize",
            sentence: String(
                format: "the picture differs by %.1f grey levels at most, %.1f on average: ", distances.max() ?? 0,
                average) + "another resize, fit or orientation than \(resizing)")
    }

    private static func index(_ pixel: Int, _ channel: Int) -> Int {
        layout == "NCHW" ? channel * width * height + pixel : pixel * channels + channel
    }

    /// Returns the grey levels (rows, columns, channels) that the golden tensor was computed from.
    private static func pixels(of expected: [%%{element}]) -> [Double] {
        var pixels = [Double](repeating: 0, count: expected.count)
        for pixel in 0..<(width * height) {
            for channel in 0..<channels {
                let value = Double(expected[index(pixel, channel)])
                pixels[pixel * channels + channel] = (value * std[channel] + mean[channel]) / scale
            }
        }
        return pixels
    }

    private static func laidOut(way: Way, isPlanar: Bool, _ value: (Int, Int) -> Double) -> Tensor {
        let zeros = [Double](repeating: 0, count: width * height * channels)
        var tensor = Tensor(values: zeros, levels: zeros)
        for pixel in 0..<(width * height) {
            for channel in 0..<channels {
                let place = isPlanar ? channel * width * height + pixel : pixel * channels + channel
                let made = value(pixel, channel)
                tensor.levels[place] = way.level(at: made, channel)
                tensor.values[place] = limits.map { min(max(made.rounded(.toNearestOrEven), $0.lowerBound), $0.upperBound) } ?? made
            }
        }
        return tensor
    }
}
