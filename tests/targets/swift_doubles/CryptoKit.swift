// What the generated Swift uses of CryptoKit, for Linux: SHA-256 (FIPS 180-4) under Apple's signatures.

import Foundation

public enum SHA256 {
    public static func hash(data: Data) -> [UInt8] {
        var state: [UInt32] = primes(8).map { bits(of: $0.squareRoot()) }
        let constants = primes(64).map { bits(of: cbrt($0)) }
        var message = [UInt8](data) + [0x80]
        while message.count % 64 != 56 { message.append(0) }
        message += (0..<8).map { UInt8(truncatingIfNeeded: UInt64(data.count * 8) >> UInt64(56 - 8 * $0)) }
        message.withUnsafeBufferPointer { bytes in
            var words = [UInt32](repeating: 0, count: 64)
            for start in stride(from: 0, to: bytes.count, by: 64) {
                for index in 0..<16 {
                    words[index] = (0..<4).reduce(0) { $0 << 8 | UInt32(bytes[start + 4 * index + $1]) }
                }
                for index in 16..<64 {
                    let (far, near) = (words[index - 15], words[index - 2])
                    words[index] =
                        words[index - 16] &+ (turn(far, 7) ^ turn(far, 18) ^ far >> 3) &+ words[index - 7]
                        &+ (turn(near, 17) ^ turn(near, 19) ^ near >> 10)
                }
                state = zip(state, rounds(state, words, constants)).map { $0 &+ $1 }
            }
        }
        return state.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (24 - 8 * UInt32($0))) } }
    }

    private static func rounds(_ state: [UInt32], _ words: [UInt32], _ constants: [UInt32]) -> [UInt32] {
        var (a, b, c, d, e, f, g, h) = (
            state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7]
        )
        for index in 0..<64 {
            let one = h &+ (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) &+ (e & f ^ ~e & g) &+ constants[index] &+ words[index]
            let two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) &+ (a & b ^ a & c ^ b & c)
            (h, g, f, e, d, c, b, a) = (g, f, e, d &+ one, c, b, a, one &+ two)
        }
        return [a, b, c, d, e, f, g, h]
    }

    private static func turn(_ word: UInt32, _ by: UInt32) -> UInt32 { word >> by | word << (32 - by) }

    private static func primes(_ count: Int) -> [Double] {
        var found = [Int]()
        var candidate = 2
        while found.count < count {
            if found.allSatisfy({ candidate % $0 != 0 }) { found.append(candidate) }
            candidate += 1
        }
        return found.map(Double.init)
    }

    private static func bits(of root: Double) -> UInt32 {
        UInt32((root - root.rounded(.down)) * 4_294_967_296)
    }
}
