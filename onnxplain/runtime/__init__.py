"""onnxruntime: sessions with providers, chunks by memory, and whether an answer is right."""
