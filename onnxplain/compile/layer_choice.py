"""Which feature maps a method is about that looks at them from outside: decided without compiling anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxplain.compile.analysis import Analysis
from onnxplain.compile.contract import Request, Resolved
from onnxplain.compile.feature_maps import attributing_said, layout_of
from onnxplain.composites import COMPOSITES
from onnxplain.frontend.normalise import Normalised
from onnxplain.rules.finishes import FINISHES


@dataclass(frozen=True)
class MapLayers:
    """channels: name of each feature map -> the axis of its channels. proven: whether axis 0 of all counts samples."""

    channels: Mapping[str, int]
    proven: bool = True
    notes: Sequence[str] = ()


def map_layers(normalised: Normalised, resolved: Resolved, request: Request) -> MapLayers:
    """Those that are attributed to, else the last one, as a class activation map takes it; that is noted.

    Nodes need no derivative. Raises UsageError and UnsupportedModel as class activation maps do.
    """
    found = Analysis(
        normalised.model.clone(), resolved, COMPOSITES["none"].make(None), request, FINISHES["hires_cam"], strict=False
    )
    channels = found.op.facts.channels
    notes = () if request.attribute_to else [attributing_said(value, layout_of(found.nodes)) for value in channels]
    proven = all(found.op.facts.axes.get(value) == 0 for value in channels)
    return MapLayers({str(value.name): axis for value, axis in channels.items()}, proven, notes)
