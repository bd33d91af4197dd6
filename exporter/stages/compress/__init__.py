"""Compress a torch model before it is exported: one module per method, same noun in and out."""
