"""How good answers are: metrics, the float reference that everything is held against, and paired drops."""
