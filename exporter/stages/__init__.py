"""The steps of a build, each in the module named after it; none of them imports another."""
