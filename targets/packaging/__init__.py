"""What mobile teams pull, whatever installs it: the nouns of packages, and deterministic zips."""
