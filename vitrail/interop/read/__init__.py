"""Readers of official checkpoints, timm's and Hugging Face's files."""
