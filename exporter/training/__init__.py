"""Training: one loop for every method, on whatever `accelerate` finds; knows torch, no stage and no file format."""
