// %%{title}: replays the golden vectors through the code that an app links.

import XCTest
%%{imports}
/// Run it on the devices that must work: `xcodebuild test` with a phone as the destination, or Xcode's diamond.
final class %%{type}: XCTestCase {
    private func golden() throws -> %%{prefix}Golden {
        let golden = try %%{prefix}Golden.load()
        XCTAssertFalse(golden.samples.isEmpty)
        return golden
    }
%%{tests}}
