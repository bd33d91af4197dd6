// swift-tools-version: 5.9
// %%{name|comment} %%{version|comment}, written by edge-exporter: change the model and build it again, not this file.

import PackageDescription

let package = Package(
    name: %%{package|swift_string},
    platforms: [.iOS("%%{ios}"), .macOS("%%{macos}")],
    products: [
<% for member in members %>
        .library(name: %%{member.module|swift_string}, targets: [%%{member.module|swift_string}]),
<% endfor %>
        .library(name: %%{golden_module|swift_string}, targets: [%%{golden_module|swift_string}])
    ],
<% if needs_onnxruntime %>
    dependencies: [
        .package(url: "https://github.com/microsoft/onnxruntime-swift-package-manager", from: "1.20.0")
    ],
<% else %>
    dependencies: [],
<% endif %>
    targets: [
        .target(
            name: %%{contract_module|swift_string}
        ),
<% for member in members %>
        .target(
            name: %%{member.module|swift_string},
            dependencies: [%%{contract_module|swift_string}
<%- if needs_onnxruntime %>, .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager")<% endif %>],
            resources: [.copy(%%{("Resources/" ~ member.model.file)|swift_string})]
        ),
<% endfor %>
        .target(
            name: %%{golden_module|swift_string},
            resources: [.copy("golden")]
        ),
        .testTarget(
            name: %%{tests_module|swift_string},
            dependencies: [%%{contract_module|swift_string}, %%{golden_module|swift_string}
<%- for member in members %>, %%{member.module|swift_string}<% endfor %>]
        )
    ]
)
