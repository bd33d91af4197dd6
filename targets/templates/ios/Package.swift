// swift-tools-version: 5.9
// %%{title}: a package manifest to start from; move `models/` and the Swift files below `Sources/%%{type}/`.
// The version is the oldest that reads these files; take the newest.

import PackageDescription

let package = Package(
    name: %%{package},
    platforms: [.iOS(%%{platform})],
    products: [
        .library(name: %%{package}, targets: [%%{package}])
    ],
    dependencies: [
%%{dependencies}
    ],
    targets: [
        .target(
            name: %%{package},
            dependencies: [
%%{products}
            ],
            resources: [
%%{resources}
            ]
        )
    ]
)
