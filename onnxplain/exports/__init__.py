"""Files for other systems. Importing this package registers the targets of all its modules."""

from onnxplain.exports.registry import EXPORTS, Exported, ExportJob, ExportOption, ExportTarget, export_target
from onnxplain.registry import import_modules

import_modules(__name__)

__all__ = ["EXPORTS", "ExportJob", "ExportOption", "ExportTarget", "Exported", "export_target"]
