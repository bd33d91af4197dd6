// %%{card.name|comment} %%{card.version|comment}: what the model is called and what its answers mean.

import Foundation

/// What every file of this model shares.
public enum %%{prefix}Contract {
    /// The model's name.
    public static let name = %%{card.name|swift_string}

    /// The model's version (SemVer).
    public static let version = %%{card.version|swift_string}

    /// What the classes are called, in the order of the model's scores; empty where nobody named them.
    public static let labels: [String] = [
<% for label in card.labels %>
        %%{label|swift_string}%%{"" if loop.last else ","}
<% else %>

<% endfor %>
    ]
}

/// One class with the model's own number for it: a logit or a probability, as the model was trained.
public struct %%{prefix}Score: Hashable, Sendable {
    /// What the class is called; its number where it has no name.
    public let label: String

    /// Which of the model's scores this is, from 0.
    public let index: Int

    /// The model's number, as it answered it.
    public let value: Double

    /// Returns every class with its label, best first; equal scores keep the model's order.
    public static func ranked<Number: BinaryFloatingPoint>(_ scores: [Number]) -> [%%{prefix}Score] {
        let labels = %%{prefix}Contract.labels
        return scores.indices
            .sorted { (scores[$1], $0) < (scores[$0], $1) }
            .map { index in
                %%{prefix}Score(
                    label: index < labels.count ? labels[index] : String(index), index: index,
                    value: Double(scores[index]))
            }
    }
}

/// Why a model could not be loaded, fed or read.
public enum %%{prefix}Error: Error, Hashable, Sendable, CustomStringConvertible, LocalizedError {
    /// An input holds another number of values than its shape.
    case wrongSize(input: String, expected: Int, given: Int)

    /// The model has no output of that name.
    case missingOutput(String)

    /// The app carries no such file: its package product is not linked, or the file was not added to the target.
    case missingFile(String)

    /// The file is not the one that was validated.
    case otherBytes(file: String, expected: String, found: String)

    /// The picture cannot be read as pixels.
    case unreadablePicture(String)

    public var description: String {
        switch self {
        case .wrongSize(let input, let expected, let given):
            return "\(input) takes \(expected) values, and was given \(given)"
        case .missingOutput(let name):
            return "the model has no output called \(name)"
        case .missingFile(let name):
            return "\(name) is not in the app: link its package product, or add the file to the target"
        case .otherBytes(let file, let expected, let found):
            return "\(file) has SHA-256 \(found), the validated file has \(expected): pull the package again"
        case .unreadablePicture(let why):
            return "the picture cannot be read: \(why)"
        }
    }

    public var errorDescription: String? { description }
}
