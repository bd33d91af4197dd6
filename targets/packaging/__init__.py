"""What mobile teams pull: packages that Gradle, SwiftPM and pip install, written deterministically from bundles."""
