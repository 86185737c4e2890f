"""Render: arrays become pictures, sheets and a report. Pillow only draws; no display, no global state, no ONNX."""

from onnxplain.render.channels import reduce_channels, sample_layout
from onnxplain.render.colour import colours, limits, lut
from onnxplain.render.features import features
from onnxplain.render.files import OutputFolder, safe_name
from onnxplain.render.grid import grid
from onnxplain.render.heatmap import heatmap
from onnxplain.render.layout import png
from onnxplain.render.overlay import overlay, smoothing
from onnxplain.render.panel import Panel, over_photo, picture
from onnxplain.render.photo import as_photo
from onnxplain.render.report import ClassScore, Report, html
from onnxplain.render.sequence import strip
from onnxplain.render.vector import bars

__all__ = [
    "ClassScore",
    "OutputFolder",
    "Panel",
    "Report",
    "as_photo",
    "bars",
    "colours",
    "features",
    "grid",
    "heatmap",
    "html",
    "limits",
    "lut",
    "over_photo",
    "overlay",
    "picture",
    "png",
    "reduce_channels",
    "safe_name",
    "sample_layout",
    "smoothing",
    "strip",
]
