"""Engines that spread the service over many machines; the service itself is `onnxplain.server`."""
