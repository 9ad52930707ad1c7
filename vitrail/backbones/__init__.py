"""Views in, `Features` out: one skeleton, swappable operators, a table of named models."""
