"""A small, real job for the exporter: two trained networks, data, and recipes as users would write them.

Nothing here is special to the exporter: the recipes name a factory file, weights and arrays by path.
`scripts/train_demo_models.py` makes every binary file in this folder.
"""
