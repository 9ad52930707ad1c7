"""The ranks of a distributed run, and collectives with gradients."""
