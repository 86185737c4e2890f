"""Parts of models that are fitted to labelled data, so that a method that asks for them can answer."""

from onnxplain.fit.cam_head import FittedHead, fit_cam
from onnxplain.fit.labelled_rows import LabelledRows, of_arrays, of_folder, read_labelled

__all__ = ["FittedHead", "LabelledRows", "fit_cam", "of_arrays", "of_folder", "read_labelled"]
