"""ONNX in, ONNX out: load, normalise, look at, emit. Knows nothing of derivatives or relevance."""
