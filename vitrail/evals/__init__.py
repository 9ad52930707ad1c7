"""Evaluation: from an encoder to numbers and pictures; it imports no objective."""
