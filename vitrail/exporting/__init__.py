"""Writers of trained encoders in the formats of other libraries: timm, Hugging Face, ONNX."""
