"""What jobs have in common: the one opening of a model and its data, settling schemes, agreement with devices."""
