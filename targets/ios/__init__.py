"""iOS: the target, the Swift it writes, and the packages that SwiftPM pulls."""
