"""ONNX in: load, validate, normalise and verify a model, once."""
