"""What is fed and how results are averaged: arrays only. Importing this package registers every method in it."""

import importlib
import pkgutil

from onnxplain.methods import onepass
from onnxplain.methods.registry import METHODS, Form, Looped, Method, OnePass, method, of_family

for _module in sorted(found.name for found in pkgutil.iter_modules(__path__)):  # a new file is a new method
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["METHODS", "Form", "Looped", "Method", "OnePass", "method", "of_family", "onepass"]
