"""Give it any ONNX model; it writes a second ONNX model that returns the first one's answer and the reasons for it."""

__version__ = "0.1.0"
