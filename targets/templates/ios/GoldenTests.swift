// %%{card.name|comment} %%{card.version|comment}: replays the golden vectors through the code that an app links.

import XCTest
<% if element %>
#if canImport(ImageIO)
import ImageIO
#endif
<% endif %>
<% for module in modules %>
#if canImport(%%{module})
import %%{module}
#endif
<% endfor %>

/// Run it on the devices that must work: `xcodebuild test` with a phone as the destination, or Xcode's diamond.
final class %%{tests_module}: XCTestCase {
    private func golden() throws -> %%{prefix}Golden {
        let golden = try %%{prefix}Golden.load()
        XCTAssertFalse(golden.samples.isEmpty)
        return golden
    }
<% if element %>
<% include "ios/_golden_picture_tests.swift" %>
<% endif %>
<% if is_core_ml %>

    #if canImport(CoreML)
<% endif %>
<% for model in models %>
<% if not (is_core_ml and loop.first) %>

<% endif %>
    func test%%{model.type}() throws {
        let (golden, model) = (try self.golden(), try %%{model.type}())
        for sample in golden.samples {
            let answers = try model.run(
<%- set comma = joiner(",") %>
<% for input in model.inputs %>%%{comma()}
                %%{input.variable}: try sample.input(%%{input.spec.name|swift_string}).values.map { %%{input.element.swift}($0) }
<%- endfor %>
<% for axis in model.axes.values() %>%%{comma()}
                %%{axis.variable}: try sample.input(%%{axis.owner|swift_string}).shape[%%{axis.place}]
<%- endfor %>)
            let failures = golden.failures(
                of: %%{model.artifact.path.name|swift_string}, in: sample,
                answers: [
<% for output in model.outputs %>
                    %%{output.spec.name|swift_string}: answers.%%{output.variable}.map { Double($0) }%%{"" if loop.last else ","}
<% endfor %>
                ])
            XCTAssertEqual(failures, [], "sample \(sample.number)")
        }
    }
<% endfor %>
<% if is_core_ml %>
    #endif
<% endif %>
}
