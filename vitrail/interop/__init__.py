"""Other people's formats: official checkpoints, timm."""
