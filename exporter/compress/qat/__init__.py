"""`method = "qat"`: fine-tuning with the rounding of the exported integer graph in the forward pass."""
