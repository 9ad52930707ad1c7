"""Objectives: features -> head -> loss -> state update, one file per method."""
