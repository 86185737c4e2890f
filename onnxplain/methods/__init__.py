"""What is fed and how results are averaged: arrays only. Importing this package registers all methods."""

from onnxplain.methods import onepass
from onnxplain.methods.registry import METHODS, Form, Method

__all__ = ["METHODS", "Form", "Method", "onepass"]
