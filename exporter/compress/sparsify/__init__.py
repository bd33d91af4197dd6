"""`method = "sparsify"`: single weights become zero, and stay zero in the file that ships."""
