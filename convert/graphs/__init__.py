"""ONNX graphs of deltas: the ops of their domain, export, verification."""
