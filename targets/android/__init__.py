"""Android: the target, the Kotlin it writes, and the AARs and Maven repository that Gradle pulls."""
