"""Random ONNX graphs, drawn from a random seed, and what judges the explanations of them."""
