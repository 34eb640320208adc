"""ONNX graphs as trainable torch networks: what quantization-aware training trains."""
