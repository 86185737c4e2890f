"""Inputs and outputs of a graph in the words of the Open Inference Protocol: metadata, configuration, statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.server.scheduling.queue import ModelQueue
from onnxplain.wire.inference import POOL
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import datatype_of

PLATFORM = "onnxruntime_onnx"  # Triton's word for it; load generators look for it
BACKEND = "onnxruntime"
TYPES = POOL.FindEnumTypeByName("inference.DataType").values_by_name


@dataclass(frozen=True)
class TensorMetadata:
    """One input or output. shape: -1 where any length goes; None: the rank is not known."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None


def tensor_metadata(values: Iterable[ir.Value]) -> list[TensorMetadata]:
    """The inputs or outputs of a graph. Raises UnsupportedModel for what cannot be sent."""
    tensors = []
    for value in values:
        if value.dtype is None or not isinstance(value.type, ir.TensorType):
            raise UnsupportedModel(
                f"{value.name}: it is {value.type}, and only tensors can be served; export the model without it "
                "(skl2onnx: options={'zipmap': False})."
            )
        tensors.append(TensorMetadata(str(value.name), _datatype(value), _shape(value)))
    return tensors


def _datatype(value: ir.Value) -> str:
    dtype = value.dtype
    assert dtype is not None
    if dtype == ir.DataType.STRING:
        return "BYTES"
    if dtype == ir.DataType.BFLOAT16:
        return "BF16"
    try:
        return datatype_of(dtype.numpy())
    except Exception as error:
        raise UnsupportedModel(
            f"{value.name}: tensors of {dtype.name} cannot be sent by the Open Inference Protocol; put a Cast there."
        ) from error


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    return None if value.shape is None else tuple(d if isinstance(d, int) else -1 for d in value.shape)


def model_metadata(name: str, versions: list[str], inputs: list[TensorMetadata], outputs: list[TensorMetadata]) -> Any:
    """ModelMetadataResponse. Field 6 stays empty: KServe, MLServer and Triton disagree on it."""
    reply = oip.ModelMetadataResponse(name=name, versions=versions, platform=PLATFORM)
    for target, tensors in ((reply.inputs, inputs), (reply.outputs, outputs)):
        for tensor in tensors:
            target.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape or ())
    return reply


def model_config(
    name: str,
    inputs: list[TensorMetadata],
    outputs: list[TensorMetadata],
    queue: ModelQueue,
    versions: str | int | tuple[str, ...] = "latest",
    file: str = "",
) -> Any:
    """ModelConfigResponse: with a batch size where requests are put together.

    versions: as in the model's settings. file: the name of the model's, "" where the graph is in none.
    """
    reply = oip.ModelConfigResponse()
    config = reply.config
    config.name, config.platform, config.backend = name, PLATFORM, BACKEND
    batched = queue.axes is not None and all(queue.axes.get(p.name) == 0 for p in (*inputs, *outputs))
    config.max_batch_size = queue.max_rows if batched else 0
    config.default_model_filename = file
    if versions == "all":
        config.version_policy.all.SetInParent()
    elif isinstance(versions, tuple):
        config.version_policy.specific.versions.extend(int(version) for version in versions)
    else:
        config.version_policy.latest.num_versions = versions if isinstance(versions, int) else 1
    for target, tensors in ((config.input, inputs), (config.output, outputs)):
        for tensor in tensors:
            dims = tensor.shape or ()
            entry = target.add(name=tensor.name, dims=dims[1:] if batched else dims)
            entry.data_type = TYPES[f"TYPE_{'STRING' if tensor.datatype == 'BYTES' else tensor.datatype}"].number
    if batched:
        config.dynamic_batching.SetInParent()
    return reply


def model_statistics(name: str, version: str, queue: ModelQueue) -> Any:
    """ModelStatistics of one queue. Times in nanoseconds, as Triton counts them."""
    counted = queue.stats
    statistics = oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=int(1000 * counted.last),
        inference_count=counted.rows,
        execution_count=counted.runs,
    )
    stats = statistics.inference_stats
    good = counted.requests - counted.failures
    stats.success.count, stats.success.ns = good, int(1e9 * (counted.queued + counted.computed))
    stats.fail.count = counted.failures
    stats.queue.count, stats.queue.ns = counted.requests, int(1e9 * counted.queued)
    stats.compute_infer.count, stats.compute_infer.ns = good, int(1e9 * counted.computed)
    for rows, runs in sorted(counted.batches.items()):
        batch = statistics.batch_stats.add(batch_size=rows)
        batch.compute_infer.count = runs
    return statistics
