"""Packages for other systems: what Triton and KServe load. MLflow's is `onnxplain.mlflow`."""
