"""A registry: one URL from which Gradle, SwiftPM, pip and `edge-export pull` each take what they know how to take.

`stores` read and write files at a URL, `documents` are the nouns (index, release); the verbs are `publishing` (which has
its steps in `packing`, `state`, `writing` and `committing`), `pulling` and `checking`; `trust` is what a client remembers,
so that nobody can hand it yesterday's index. What is signed is decided here, how by `exporter.attesting`. Knows bundles
as folders with a manifest; nothing here loads a model.
"""
