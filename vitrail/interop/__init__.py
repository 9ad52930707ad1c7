"""Other people's formats: official checkpoints, timm, Hugging Face, ONNX, in and out."""
