// %%{card.name|comment} %%{card.version|comment}: from picture to tensor, the contract of preprocess.json.

#if canImport(CoreGraphics)
import CoreGraphics
#endif

/// Turns a picture into the tensor that the model was calibrated on.
///
/// Resampling follows Pillow's (area-aware, 22-bit fixed point, horizontal then vertical), because a platform's
/// own scaler gives other pixels. Turn the picture upright by its EXIF tag first.
public enum %%{prefix}Preprocessing {
    public static let width = %%{width}
    public static let height = %%{height}
    private static let color = "%%{color}"
    private static let layout = "%%{layout}"
    private static let resampling = "%%{resize}"
    private static let fitting = "%%{fit}"
    private static let pad = %%{pad}
    private static let scale: Double = %%{scale}
    private static let mean: [Double] = [%%{mean|join(", ")}]
    private static let std: [Double] = [%%{std|join(", ")}]
    private static let channels = color == "L" ? 1 : 3
    private static let precisionBits = 22

    /// Interleaved 8-bit pixels, `channels` values each.
    private struct Pixels {
        let width: Int
        let height: Int
        let channels: Int
        var values: [Int]

        init(width: Int, height: Int, channels: Int, value: Int = 0) {
            self.width = width
            self.height = height
            self.channels = channels
            values = [Int](repeating: value, count: width * height * channels)
        }
    }

    /// Returns the tensor for one picture, in the layout of the contract.
    ///
    /// `rgba` holds four bytes a pixel (red, green, blue, alpha; not premultiplied), rows from the top.
    public static func tensor(rgba: [UInt8], width sourceWidth: Int, height sourceHeight: Int) -> [%%{element}] {
        precondition(sourceWidth > 0 && sourceHeight > 0 && rgba.count == 4 * sourceWidth * sourceHeight)
        let fitted = fit(flatten(rgba, width: sourceWidth, height: sourceHeight))
        var tensor = [%%{element}](repeating: 0, count: width * height * channels)
        for pixel in 0..<(width * height) {
            for channel in 0..<channels {
                let source = color == "BGR" ? channels - 1 - channel : channel
                let level = Double(fitted.values[pixel * channels + source])
                let value = (level * scale - mean[channel]) / std[channel]
                let index = layout == "NCHW" ? channel * width * height + pixel : pixel * channels + channel
<% if limits %>
                tensor[index] = %%{element}(max(%%{limits[0]}, min(%%{limits[1]}, value.rounded(.toNearestOrEven))))
<% else %>
                tensor[index] = %%{element}(value)
<% endif %>
            }
        }
        return tensor
    }

    private static func flatten(_ rgba: [UInt8], width: Int, height: Int) -> Pixels {
        var pixels = Pixels(width: width, height: height, channels: channels)
        for index in 0..<(width * height) {
            let alpha = Int(rgba[index * 4 + 3])
            let red = overBlack(Int(rgba[index * 4]), alpha)
            let green = overBlack(Int(rgba[index * 4 + 1]), alpha)
            let blue = overBlack(Int(rgba[index * 4 + 2]), alpha)
            if channels == 1 {
                pixels.values[index] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
            } else {
                pixels.values[index * 3] = red
                pixels.values[index * 3 + 1] = green
                pixels.values[index * 3 + 2] = blue
            }
        }
        return pixels
    }

    private static func overBlack(_ value: Int, _ alpha: Int) -> Int {
        if alpha == 255 { return value }
        let product = value * alpha * 128 + 0x4000
        return (((product >> 8) + product) >> 8) >> 7
    }

    private static func fit(_ pixels: Pixels) -> Pixels {
        if fitting == "stretch" { return resize(pixels, to: width, height) }
        let across = Double(width) / Double(pixels.width)
        let down = Double(height) / Double(pixels.height)
        let ratio = fitting == "crop" ? max(across, down) : min(across, down)
        let scaled = resize(
            pixels, to: scaledSide(pixels.width, ratio, width), scaledSide(pixels.height, ratio, height))
        let left = (width - scaled.width) >> 1
        let top = (height - scaled.height) >> 1
        var placed = Pixels(width: width, height: height, channels: channels, value: pad)
        for y in max(0, top)..<min(height, top + scaled.height) {
            for x in max(0, left)..<min(width, left + scaled.width) {
                for channel in 0..<channels {
                    placed.values[(y * width + x) * channels + channel] =
                        scaled.values[((y - top) * scaled.width + x - left) * channels + channel]
                }
            }
        }
        return placed
    }

    private static func scaledSide(_ side: Int, _ ratio: Double, _ wanted: Int) -> Int {
        let scaled = Int((Double(side) * ratio).rounded(.toNearestOrEven))
        return fitting == "crop" ? max(scaled, wanted) : max(1, min(scaled, wanted))
    }

    private static func resize(_ pixels: Pixels, to width: Int, _ height: Int) -> Pixels {
        if resampling == "nearest" { return nearest(pixels, width, height) }
        let wide = width == pixels.width ? pixels : resample(pixels, width, horizontal: true)
        return height == pixels.height ? wide : resample(wide, height, horizontal: false)
    }

    private static func nearest(_ pixels: Pixels, _ width: Int, _ height: Int) -> Pixels {
        var result = Pixels(width: width, height: height, channels: pixels.channels)
        let columns = nearestIndices(pixels.width, width)
        let rows = nearestIndices(pixels.height, height)
        for y in 0..<height {
            for x in 0..<width {
                for channel in 0..<pixels.channels {
                    result.values[(y * width + x) * pixels.channels + channel] =
                        pixels.values[(rows[y] * pixels.width + columns[x]) * pixels.channels + channel]
                }
            }
        }
        return result
    }

    private static func nearestIndices(_ from: Int, _ to: Int) -> [Int] {
        let step = Double(from) / Double(to)
        var position = step * 0.5
        var indices = [Int]()
        for _ in 0..<to {
            indices.append(min(from - 1, Int(position)))
            position += step
        }
        return indices
    }

    private static func resample(_ pixels: Pixels, _ size: Int, horizontal: Bool) -> Pixels {
        let from = horizontal ? pixels.width : pixels.height
        let lines = horizontal ? pixels.height : pixels.width
        var result = Pixels(
            width: horizontal ? size : pixels.width, height: horizontal ? pixels.height : size,
            channels: pixels.channels)
        for target in 0..<size {
            let (first, weights) = weightsFor(target, from, size)
            for line in 0..<lines {
                for channel in 0..<pixels.channels {
                    var sum = 1 << (precisionBits - 1)
                    for (offset, weight) in weights.enumerated() {
                        let at = horizontal
                            ? line * pixels.width + first + offset : (first + offset) * pixels.width + line
                        sum += pixels.values[at * pixels.channels + channel] * weight
                    }
                    let at = horizontal ? line * size + target : target * pixels.width + line
                    result.values[at * pixels.channels + channel] = max(0, min(255, sum >> precisionBits))
                }
            }
        }
        return result
    }

    /// Returns the first source index of output `target` and the fixed-point weights from there on.
    private static func weightsFor(_ target: Int, _ from: Int, _ to: Int) -> (Int, [Int]) {
        let ratio = Double(from) / Double(to)
        let filterScale = max(ratio, 1.0)
        let support = (resampling == "bicubic" ? 2.0 : 1.0) * filterScale
        let center = (Double(target) + 0.5) * ratio
        let first = max(0, Int(center - support + 0.5))
        let last = min(from, Int(center + support + 0.5))
        let weights = (first..<last).map { kernel((Double($0) - center + 0.5) * (1.0 / filterScale)) }
        let total = weights.reduce(0, +)
        return (
            first,
            weights.map { weight in
                let scaled = weight / total * Double(1 << precisionBits)
                return Int(scaled < 0 ? scaled - 0.5 : scaled + 0.5)
            }
        )
    }

    private static func kernel(_ distance: Double) -> Double {
        let x = abs(distance)
        if resampling != "bicubic" { return x < 1.0 ? 1.0 - x : 0.0 }
        if x < 1.0 { return (1.5 * x - 2.5) * x * x + 1.0 }
        if x < 2.0 { return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 }
        return 0.0
    }
}

#if canImport(CoreGraphics)
extension %%{prefix}Preprocessing {
    /// Returns the tensor for one upright picture: a `CGImage` does not know its orientation.
    ///
    /// Colours are brought to sRGB, which is what models are trained on; a grey picture keeps its levels, which a change
    /// of gamma would move. What is transparent shows black.
    public static func tensor(_ image: CGImage) throws -> [%%{element}] {
        var rgba = [UInt8](repeating: 255, count: 4 * image.width * image.height)
        if let space = image.colorSpace, space.model == .monochrome {
            let levels = try bytes(of: image, channels: 1, space: space, alpha: .none)
            for (index, level) in levels.enumerated() {
                for channel in 0..<3 { rgba[4 * index + channel] = level }
            }
        } else {
            let space = CGColorSpace(name: CGColorSpace.sRGB) ?? CGColorSpaceCreateDeviceRGB()
            let drawn = try bytes(of: image, channels: 4, space: space, alpha: .noneSkipLast)
            for index in drawn.indices where index % 4 != 3 { rgba[index] = drawn[index] }
        }
        return tensor(rgba: rgba, width: image.width, height: image.height)
    }

    private static func bytes(
        of image: CGImage, channels: Int, space: CGColorSpace, alpha: CGImageAlphaInfo
    ) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: channels * image.width * image.height)
        try bytes.withUnsafeMutableBytes { buffer in
            guard
                let context = CGContext(
                    data: buffer.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                    bytesPerRow: channels * image.width, space: space, bitmapInfo: alpha.rawValue)
            else {
                throw %%{prefix}Error.unreadablePicture("\(image.width) x \(image.height) pixels cannot be drawn")
            }
            context.interpolationQuality = .none
            context.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
        }
        return bytes
    }
}
#endif
