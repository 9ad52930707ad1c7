"""Backbones: networks from images or tokens to features, and the table of their names."""
