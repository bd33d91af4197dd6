// swift-tools-version: 5.9
// %%{title}, written by edge-exporter: change the model and build it again, not this file.

import PackageDescription

let package = Package(
    name: %%{package},
    platforms: [%%{platforms}],
    products: [
%%{products}
    ],
    dependencies: [%%{dependencies}],
    targets: [
%%{targets}
    ]
)
