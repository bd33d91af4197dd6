"""`method = "factorize"`: linear and convolution layers become two thinner ones each."""
