"""Operators of a layer: attention and token-wise maps."""
