"""Explanations of data sets of any size: blocks of rows in, partitions out, here or on many machines, resumable.

`plan` lists the rows of files and cuts them into blocks, `BulkJob` says how a row is explained, an executor has blocks
explained (`local`, `ray`), a `Dataset` is the folder that gets them.
"""

from onnxplain.bulk.dataset import Dataset
from onnxplain.bulk.executors import EXECUTORS
from onnxplain.bulk.job import BulkJob
from onnxplain.bulk.partition import Row
from onnxplain.bulk.plan import Plan, plan
from onnxplain.bulk.run import Summary, explain_all

__all__ = ["EXECUTORS", "BulkJob", "Dataset", "Plan", "Row", "Summary", "explain_all", "plan"]
