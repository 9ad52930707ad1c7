"""Benchmarks: one command for each claim about speed or memory."""
