"""An explanation as a client wants it: JSON, a picture, the report, or arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain import render
from onnxplain.client.requests import ModelInfo
from onnxplain.client.responses import RemoteExplanation, remote_explanation
from onnxplain.errors import UnknownName, UsageError
from onnxplain.inputs import Loaded
from onnxplain.invocation import Invocation, manifest_of, panels_of, report_of
from onnxplain.server.http.errors import NotAcceptable
from onnxplain.server.http.explain_words import ExplainWords
from onnxplain.server.http.reply import JSON, Reply
from onnxplain.server.http.tensors import json_tensor, json_values, write_json
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.tensors import v1_array

PNG, HTML, NPZ = "image/png", "text/html", "application/x-npz"
MEDIA = {"json": JSON, "png": PNG, "html": HTML, "npz": NPZ}
DRAWINGS = ("overlay", "map", "grid")
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"


def chosen_format(words: ExplainWords, accept: str) -> str:
    """The form of the answer: `format` if it is said, else what the Accept header likes best, else JSON."""
    if words.format:
        if words.format not in MEDIA:
            raise UnknownName("format", words.format[:100], MEDIA).at("format")
        return words.format
    liked = sorted(_accepted(accept), key=lambda entry: -entry[1])
    for media, quality in liked:
        for word, ours in {**MEDIA, "npz ": "application/zip"}.items():
            if quality > 0 and media in (ours, "*/*", ours.partition("/")[0] + "/*"):
                return word.strip()
    if accept.strip():
        raise NotAcceptable(f"answers are {', '.join(MEDIA.values())}, not {accept[:100]!r}.").at("accept")
    return "json"


def check_drawing(words: ExplainWords, form: str) -> None:
    """Refuse what nobody draws, before anything is computed."""
    if words.draw and words.draw not in DRAWINGS:
        raise UnknownName("drawing", words.draw[:100], DRAWINGS).at("draw")
    if words.draw and form != "png":
        raise UsageError(f"draw says nothing to {form}; give format=png too.").at("draw")
    if words.palette:
        render.lut(words.palette)  # says which there are
        if form not in ("png", "html"):
            raise UsageError(f"palette says nothing to {form}; give format=png or html too.").at("palette")


def explained(reply: v1.ExplainResponse, info: ModelInfo, loaded: Loaded, words: ExplainWords, form: str) -> Reply:
    """The answer in one of the forms; blocks while it draws."""
    explanation = remote_explanation(reply, info, loaded, words.targets)
    write: Mapping[str, Callable[[], Reply]] = {
        "json": lambda: Reply(write_json(as_json(reply, explanation, loaded))),
        "npz": lambda: Reply(explanation.npz(), media_type=NPZ, headers=_file(explanation, "npz")),
        "png": lambda: Reply(render.png(_drawn(_invocation(explanation, info, loaded), words)), media_type=PNG),
        "html": lambda: Reply(
            _report(_invocation(explanation, info, loaded), words).encode(),
            media_type=f"{HTML}; charset=utf-8",
            headers={"content-security-policy": REPORT_POLICY},
        ),
    }
    return write[form]()


def as_json(reply: v1.ExplainResponse, explanation: RemoteExplanation, loaded: Loaded) -> dict[str, Any]:
    """All that was found. Tensors are flat lists as in infer; rows are target by target, sample by sample."""
    return {
        "model_name": explanation.model,
        "model_version": explanation.version,
        "method": explanation.method.name,
        "recipe": explanation.recipe.content(),
        "recipe_digest": explanation.recipe_digest,
        "graph_digest": explanation.graph_digest,
        "explained": explanation.explained,
        "samples": explanation.samples,
        "targets": [
            {
                "target": target.name,
                "names": list(target.names),
                "scores": json_values(target.score.reshape(-1)),
                "index": None if target.index is None else target.index.tolist(),
            }
            for target in explanation.targets
        ],
        "classes": [_classes(explanation, n) for n in range(explanation.samples)],
        "scores": json_tensor(explanation.explained, explanation.scores),
        "attributions": [
            {**json_tensor(f"{name}.relevance", relevance), "of": name}
            for name, relevance in explanation.relevances.items()
        ],
        "standard_errors": [
            {**json_tensor(f"{name}.standard_error", errors), "of": name}
            for name, errors in explanation.standard_errors.items()
        ],
        "standard_error": _number(explanation.standard_error),
        "outputs": [json_tensor(tensor.name, v1_array(tensor, tensor.name)) for tensor in reply.outputs],
        "conservation": [
            {
                "seed_sum": row.seed_sum,
                "attributed_sum": row.attributed_sum,
                "absorbed_sum": row.absorbed_sum,
                "relative_error": row.relative_error,
            }
            for row in reply.conservation
        ],
        "where": [explanation.where(row) for _, _, row in explanation.rows()],
        "warnings": [*loaded.notes, *explanation.notes],
        "provenance": dict(explanation.provenance),
        "seconds": explanation.timing,
    }


def _number(value: float | None) -> Any:
    return None if value is None else json_values(np.array(value))


def _classes(explanation: RemoteExplanation, sample: int) -> list[dict[str, Any]]:
    """The highest classes of one sample."""
    return [
        {"index": row.index, "name": row.name, "score": row.score, "probability": row.probability}
        for row in explanation.top(sample)
    ]


def _invocation(explanation: RemoteExplanation, info: ModelInfo, loaded: Loaded) -> Invocation:
    return Invocation(
        where=f"{explanation.model}/{explanation.version}",
        name=explanation.model,
        version=explanation.version,
        file=f"version {explanation.version}",
        sha256=str(explanation.provenance.get("sha256", "")),
        explained=(explanation.explained,),
        inputs=[str(spec) for spec in info.specs],
        loaded=loaded,
        graph=f"{len(explanation.provenance.get('rules') or ())} on the path; graph {explanation.graph_digest[:16]}",
        explanations=[explanation],
        notes=list(explanation.notes),
        seconds=dict(explanation.timing),
    )


def _drawn(done: Invocation, words: ExplainWords) -> Any:
    """One picture: the map over the photo, the map alone, or all rows as a grid."""
    panels = panels_of(done)
    palette = words.palette or None
    over = render.over_photo(panels[0], palette) if len(panels) == 1 else None
    match words.draw or ("overlay" if over is not None else "grid"):
        case "overlay":
            _single(panels, "overlay")
            if over is None:
                raise UsageError("there is no photo to draw over; draw=map or draw=grid.").at("draw")
            return over
        case "map":
            _single(panels, "map")
            return render.picture(panels[0], palette)
    return render.grid(panels, palette=palette)


def _single(panels: Sequence[render.Panel], what: str) -> None:
    if len(panels) != 1:
        raise UsageError(f"draw={what} shows one row, and there are {len(panels)}; draw=grid shows all.").at("draw")


def _report(done: Invocation, words: ExplainWords) -> str:
    panels = panels_of(done)
    grid = render.png(render.grid(panels, palette=words.palette or None))
    return render.html(report_of(done, panels, grid, manifest_of(done)), words.palette or None)


def _file(explanation: RemoteExplanation, suffix: str) -> dict[str, str]:
    name = render.safe_name(f"{explanation.model}.{explanation.method.name}")
    return {"content-disposition": f'attachment; filename="{name}.{suffix}"'}


def _accepted(accept: str) -> list[tuple[str, float]]:
    """(media type, quality) of an Accept header, in its order."""
    found = []
    for part in accept.split(","):
        media, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        try:
            found.append((media, float(quality)))
        except ValueError:
            found.append((media, 0.0))
    return found
