"""Types of array files: one a module. Importing this package registers the readers of all its modules."""

from onnxplain.inputs.formats.registry import FORMATS, Contents, Format, reader
from onnxplain.registry import import_modules

import_modules(__name__)

__all__ = ["FORMATS", "Contents", "Format", "reader"]
