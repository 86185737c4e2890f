"""What goes into a run: settings, pictures, arrays, labels and targets. Arrays only; nothing here runs a model."""

from onnxplain.inputs.binding import bind, conform
from onnxplain.inputs.labels import find, load_labels
from onnxplain.inputs.loading import Loaded, load
from onnxplain.inputs.pictures import Prepared, prepare
from onnxplain.inputs.preparation import PictureSettings
from onnxplain.inputs.preprocessing import Preprocessing
from onnxplain.inputs.presets import PRESETS, from_options, guess
from onnxplain.inputs.settings import ModelSettings, OutputSettings, load_settings
from onnxplain.inputs.specs import InputSpec, random_inputs
from onnxplain.inputs.targets import Target, resolve_targets

__all__ = [
    "PRESETS",
    "InputSpec",
    "Loaded",
    "ModelSettings",
    "OutputSettings",
    "PictureSettings",
    "Prepared",
    "Preprocessing",
    "Target",
    "bind",
    "conform",
    "find",
    "from_options",
    "guess",
    "load",
    "load_labels",
    "load_settings",
    "prepare",
    "random_inputs",
    "resolve_targets",
]
