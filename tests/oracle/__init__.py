"""Comparisons with other libraries: the answers of torch, zennit, captum and onnx-ad on the same networks."""
