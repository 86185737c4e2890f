"""The same service over HTTP: the Open Inference Protocol's REST, KServe's v1, and explanations of pictures."""
