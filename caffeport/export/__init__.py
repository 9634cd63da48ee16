"""Networks as files for others: ONNX and PyTorch source."""
