"""Ray Serve's file: what `serve run` and `serve deploy` take to serve MODEL, and the models beside it, on a cluster."""

from __future__ import annotations

import json
from pathlib import Path

from onnxplain.exports.entry import FORCE, place, staging
from onnxplain.exports.registry import Exported, ExportJob, ExportOption, export_target

FILE = "serve.yaml"
GRPC_PORT, HTTP_PORT = 9000, 8000  # Ray's own
APPLICATION = "onnxplain.engines.ray_serve:application"
SERVICERS = (
    "onnxplain.engines.ray_proxy.add_explainer_service_to_server",
    "onnxplain.engines.ray_proxy.add_inference_service_to_server",
)
TEXT = """\
# onnxplain on Ray Serve:  serve run {file}  here, or  serve deploy {file}  to a cluster that runs.
# Every machine needs `pip install 'onnxplain[ray]'` and the models at the same place.
# Ray's proxies listen on all addresses and speak plain text: keep them in a network of your own, TLS in front of it.
proxy_location: EveryNode
http_options:
  host: 127.0.0.1
  port: {http}
grpc_options:
  port: {grpc}
  grpc_servicer_functions:
{servicers}
applications:
  - name: onnxplain
    route_prefix: /
    import_path: {application}
    args:
      models:  # repositories, or model files
        - {models}
      load:  # there from the start; others when they are first asked for
        - {name}
      max_models: 16  # that Ray takes one replica to have; memory decides what it keeps
      rows: 8  # waiting and running in one replica; more start another
      min_replicas: 1
      max_replicas: 4
      num_cpus: 1  # of one replica, and threads of one run
      num_gpus: 0  # 0.25: four replicas share a GPU
      upscale_seconds: 10
      downscale_seconds: 120
      server: {{}}  # options of `onnxplain serve`, as queue_rows: 128
"""


@export_target(
    ExportOption("ray_serve", "Write the file by which Ray Serve serves MODEL.", Path, "DIR"),
    options=[
        ExportOption("models_at", "Ray Serve: where its machines find the model repository.", metavar="PATH"),
        FORCE,
    ],
    otherwise="The server explains as model.toml says.",
)
def to_ray_serve(job: ExportJob, folder: Path, *, models_at: str | None, force: bool) -> Exported:
    """Where the file lies."""
    path = job.resolved.path.absolute()
    models = models_at or str(path.parents[2] if job.resolved.version else path)
    text = TEXT.format(
        file=FILE,
        http=HTTP_PORT,
        grpc=GRPC_PORT,
        servicers="\n".join(f"    - {name}" for name in SERVICERS),
        application=APPLICATION,
        models=json.dumps(models),
        name=json.dumps(job.resolved.name),
    )
    with staging(folder) as stage:
        (stage / FILE).write_text(text, encoding="utf-8")
        fresh = place(stage, folder, force)
    return Exported(f"{folder / FILE}{'' if fresh else '  as it was'}")
