"""Readers of weights of other libraries and papers, and our backbones as timm's models."""
