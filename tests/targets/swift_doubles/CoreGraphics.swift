// What the generated Swift uses of Core Graphics, for Linux: a double with Apple's signatures whose contexts hold levels as
// they are. It converts no colours; whether Core Graphics does is for a Mac to say.

@_exported import Foundation

public enum CGColorSpaceModel { case unknown, monochrome, rgb, indexed }
public enum CGImageAlphaInfo: UInt32 { case none, premultipliedLast, premultipliedFirst, last, first, noneSkipLast }
public enum CGInterpolationQuality { case `default`, none, low, medium, high }

public class CGColorSpace {
    public static let sRGB = "sRGB" as NSString
    public let model: CGColorSpaceModel
    public init?(name: NSString) { model = .rgb }
    public init(model: CGColorSpaceModel) { self.model = model }
}

public func CGColorSpaceCreateDeviceRGB() -> CGColorSpace { CGColorSpace(model: .rgb) }

public class CGImage {
    public let width: Int
    public let height: Int
    public let colorSpace: CGColorSpace?
    /// Red, green and blue of each pixel, or its grey level.
    let levels: [UInt8]

    public init(width: Int, height: Int, levels: [UInt8], model: CGColorSpaceModel) {
        (self.width, self.height, self.levels, colorSpace) = (width, height, levels, CGColorSpace(model: model))
    }
}

public class CGContext {
    public var interpolationQuality = CGInterpolationQuality.default
    private let bytes: UnsafeMutablePointer<UInt8>
    private let channels: Int

    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) {
        guard let data, bitsPerComponent == 8 else { return nil }
        let expected = space.model == .monochrome ? (1, CGImageAlphaInfo.none) : (4, .noneSkipLast)
        guard bytesPerRow == width * expected.0, bitmapInfo == expected.1.rawValue else { return nil }
        (bytes, channels) = (data.assumingMemoryBound(to: UInt8.self), expected.0)
    }

    public func draw(_ image: CGImage, in rect: CGRect) {
        for index in 0..<(image.width * image.height) {
            for channel in 0..<(channels == 1 ? 1 : 3) {
                bytes[index * channels + channel] = image.levels[index * (channels == 1 ? 1 : 3) + channel]
            }
        }
    }
}
