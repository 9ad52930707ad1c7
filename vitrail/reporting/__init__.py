"""JSON and pictures of a run folder -> one self-contained page."""
