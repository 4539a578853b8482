"""Checkpoints, which hold layers one by one, stacked and unstacked byte for byte."""
