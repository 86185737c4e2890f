"""Two nodes of Ray on this machine with our application on them, for test_ray_serve.py; it runs in Ray's environment.

Writes a line of JSON when all is ready: the ports and the seconds it took. Ends when its standard input does.

    python ray_cluster.py CONFIG.yaml
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import ServeDeploySchema

from onnxplain.engines.ray_serve import application

CPUS = 1  # of each node


def main(file: str) -> None:
    """Start, say so, wait, stop."""
    began = time.monotonic()
    config = yaml.safe_load(Path(file).read_text())
    ServeDeploySchema.model_validate(config)  # as `serve deploy` takes it
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "object_store_memory": 100 << 20})
    cluster.add_node(num_cpus=CPUS, object_store_memory=100 << 20)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    up = time.monotonic()
    try:
        grpc, (app,) = config["grpc_options"], config["applications"]
        serve.start(
            proxy_location=config["proxy_location"],
            http_options=HTTPOptions(**config["http_options"]),
            grpc_options=gRPCOptions(**grpc),
        )
        serve.run(application(app["args"]), name=app["name"], route_prefix=app["route_prefix"])
        ready = {
            "port": grpc["port"],
            "http": config["http_options"]["port"],
            "nodes": len(ray.nodes()),
            "cluster": up - began,
            "ready": time.monotonic() - began,
        }
        os.write(1, json.dumps(ready).encode() + b"\n")
        sys.stdin.read()
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
