"""Datasets and data preparation. Importing it loads neither torch nor BasicSR: the preparation tools start fast."""
