"""A Triton model repository entry: the compiled graph and its config.pbtxt; the model itself beside it if wanted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxplain import __version__
from onnxplain.compile import cuda
from onnxplain.compile.save import save
from onnxplain.cpu_session import CpuSession
from onnxplain.explainer import Explainer
from onnxplain.exports import batching
from onnxplain.exports.entry import FORCE, place, staging
from onnxplain.exports.pbtxt import Config
from onnxplain.exports.registry import Exported, ExportJob, ExportOption, export_target
from onnxplain.frontend.load import Source
from onnxplain.graph.outline import runtime
from onnxplain.runtime.open import bytes_per_stream

VERSION = "1"
FILE = "model.onnx"
MOST_ROWS = 64
BATCH_BYTES = 2**30  # of activations that one full batch may take


@dataclass(frozen=True)
class TritonEntry:
    """One model in the repository. rows: Triton's max_batch_size. fresh: False where the same was there already."""

    name: str
    path: Path
    rows: int
    notes: tuple[str, ...] = ()
    fresh: bool = True


def export(
    explainer: Explainer, name: str, folder: Path, *, with_model: bool = False, force: bool = False
) -> list[TritonEntry]:
    """Write `<name>.explain` (and `<name>`) into a Triton model repository, all of it or nothing.

    Raises InputError where something else lies there, UnsupportedModel where Triton could not load the graph.
    """
    configs = [_compiled(explainer, f"{name}.explain", runtime(explainer.compiled.model))]
    if with_model:
        configs.append(_forward(explainer, name))
    texts = [config.text() for config in configs]
    with staging(folder) as stage:
        for config, text in zip(configs, texts, strict=True):
            version = stage / config.name / VERSION
            version.mkdir(parents=True)
            if config.name == name:
                _copy(explainer.subject.source, version / FILE)
                CpuSession(version / FILE)  # it loads from its new place
            else:
                explainer.save(version / FILE)
                explainer.verify(version / FILE)
            (stage / config.name / "config.pbtxt").write_text(text, encoding="utf-8")
        fresh = place(stage, folder, force)
    return [TritonEntry(c.name, folder / c.name, c.rows, tuple(_notes(c)), folder / c.name in fresh) for c in configs]


@export_target(
    ExportOption("triton", "Write MODEL.explain into a Triton model repository.", Path, "DIR"),
    options=[ExportOption("with_model", "Triton: write the model itself beside its explanation.", bool), FORCE],
    takes=["recipe", "request"],
)
def to_triton(job: ExportJob, folder: Path, *, with_model: bool, force: bool) -> Exported:
    """One line for every entry: its folder, its size, how many rows Triton may join."""
    entries = export(job.explainer, job.resolved.name, folder, with_model=with_model, force=force)
    lines = []
    for entry in entries:
        size = sum(file.stat().st_size for file in entry.path.rglob("*") if file.is_file()) / 1e6
        state = "" if entry.fresh else ", as it was"
        lines.append(f"{entry.path}  {size:.1f} MB, max_batch_size {entry.rows}{state}")
    notes = [*(n for entry in entries for n in entry.notes), *cuda.notes(job.explainer.compiled.model.graph)]
    return Exported("\n".join(lines), tuple(notes))


def config_of(explainer: Explainer, name: str) -> str:
    """The config.pbtxt of a compiled graph that is not written anywhere."""
    return _compiled(explainer, name, runtime(explainer.compiled.model)).text()


def _compiled(explainer: Explainer, name: str, graph: CpuSession) -> Config:
    return _config(explainer, name, graph, explainer.row_axes(), seeded=True)


def _forward(explainer: Explainer, name: str) -> Config:
    source = explainer.subject.source
    graph = CpuSession(source.path) if source.path is not None and source.faithful else runtime(source.model)
    return _config(explainer, name, graph, explainer.subject.row_axes(), seeded=False)


def _config(explainer: Explainer, name: str, graph: CpuSession, axes: Mapping[str, int] | None, seeded: bool) -> Config:
    why = batching.obstacle(explainer, [*graph.inputs, *graph.outputs], axes) or batching.leak(explainer, graph, seeded)
    rows = 0 if why else _rows(bytes_per_stream(explainer.compiled.model))
    source, compiled = explainer.subject.source, explainer.compiled
    parameters = {"onnxplain_version": __version__, "onnxplain_model_sha256": source.sha256}
    if seeded:
        parameters |= {
            "onnxplain_method": explainer.recipe.method,
            "onnxplain_recipe_digest": explainer.recipe.digest,
            "onnxplain_explained": ", ".join(compiled.seeds.values()),
        }
    return Config(name, graph.inputs, graph.outputs, rows, why, parameters)


def _rows(nbytes: int) -> int:
    """The largest power of two whose activations fit, MOST_ROWS at most."""
    return 1 << max(0, min(MOST_ROWS, BATCH_BYTES // nbytes).bit_length() - 1)


def _notes(config: Config) -> list[str]:
    notes = [f"{config.name}: requests are not joined (max_batch_size 0): {config.why}"] if config.why else []
    if config.dropped:
        notes.append(
            f"{config.name}: Triton cannot return {', '.join(config.dropped)} (no axes); left out of its outputs"
        )
    flat = [port.name for port in (*config.inputs, *config.outputs) if config.rows and len(port.shape) == 1]
    if flat:
        notes.append(f"{config.name}: {', '.join(flat)} has the shape [rows, 1] for Triton's clients, not [rows]")
    return notes


def _copy(source: Source, path: Path) -> None:
    """The model as it came; weights in other files come along in one file."""
    outside = any(isinstance(v.const_value, ir.ExternalTensor) for v in source.model.graph.initializers.values())
    if source.path is None or outside or not source.faithful:
        save(source.model, path)
    else:
        shutil.copyfile(source.path, path)
