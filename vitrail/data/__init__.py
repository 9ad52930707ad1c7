"""Where images come from and what the model sees of them."""
