"""Libraries that write formats by conversion: beside the tool, or each in an environment of its own."""
