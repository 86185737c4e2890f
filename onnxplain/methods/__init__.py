"""What is fed and how results are averaged: arrays only. Importing this package registers every method in it."""

from onnxplain.methods import onepass
from onnxplain.methods.registry import METHODS, Form, Looped, Method, OnePass, method, of_family
from onnxplain.registry import import_modules

import_modules(__name__)  # a new file is a new method

__all__ = ["METHODS", "Form", "Looped", "Method", "OnePass", "method", "of_family", "onepass"]
