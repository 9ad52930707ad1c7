"""What is claimed to be fast, and the commands that measure it."""
