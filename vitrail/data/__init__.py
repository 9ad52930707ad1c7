"""Data: from bytes to samples, from samples to views, from views to batches."""
