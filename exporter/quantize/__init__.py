"""From a float graph and encodings to a quantised graph, with the coverage that says what that touched."""
