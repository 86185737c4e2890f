"""The service on Ray Serve: `application`, by the file that `onnxplain export MODEL --ray-serve DIR` writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from onnxplain.engines.ray_methods import METHODS, ServedMethod
from onnxplain.engines.ray_policy import RowsPolicy
from onnxplain.engines.ray_replica import Replica
from onnxplain.engines.ray_settings import ReplicaSettings
from onnxplain.errors import UsageError

ONGOING = 256  # requests of one replica; its own queues say no before, with a reason
QUEUED = 1024  # requests that wait in one proxy while every replica has its fill; more get RESOURCE_EXHAUSTED
MEASURED = 5.0  # seconds between two counts of the rows, at most
DRAIN = 30.0  # seconds for what is being answered when a replica goes


def application(args: dict[str, Any]) -> Any:
    """The Ray Serve application. args: see `ReplicaSettings`. Raises UsageError."""
    try:
        from ray import serve
        from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
    except ImportError as error:
        raise UsageError("Ray Serve is not installed: pip install 'onnxplain[ray]'.") from error
    settings = ReplicaSettings.of(args)
    policy = AutoscalingPolicy(
        policy_function=f"{RowsPolicy.__module__}:{RowsPolicy.__name__}",
        policy_kwargs={"rows_per_replica": settings.rows},
    )
    deployment = serve.deployment(
        name="models",
        max_ongoing_requests=ONGOING,
        max_queued_requests=QUEUED,
        graceful_shutdown_timeout_s=DRAIN,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            upscale_delay_s=settings.upscale_seconds,
            downscale_delay_s=settings.downscale_seconds,
            metrics_interval_s=min(MEASURED, settings.upscale_seconds / 4),
            look_back_period_s=max(1.0, settings.upscale_seconds),
            policy=policy,
        ),
    )
    return deployment(serve.ingress()(Servicer)).bind(settings.content())


def _unary(method: ServedMethod) -> Any:
    async def answer(self: Replica, request: bytes, grpc_context: Any) -> Any:
        return await self.answer(method.name, request, grpc_context)

    return answer


def _streaming(method: ServedMethod) -> Any:
    async def answers(self: Replica, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        async for reply in self.answers(method.name, request, grpc_context):
            yield reply

    return answers


class Servicer(Replica):
    """A replica with a method for every RPC, by which Ray calls it."""


for _name, _method in METHODS.items():
    _made = (_streaming if _method.gives_stream else _unary)(_method)
    _made.__name__ = _name
    setattr(Servicer, _name, _made)
