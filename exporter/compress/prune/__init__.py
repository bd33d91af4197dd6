"""`method = "prune"`: whole channels, hidden units and heads leave the network."""
