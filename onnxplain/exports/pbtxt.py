"""The config.pbtxt of one Triton model: what onnxruntime says of a graph, in Triton's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxplain.cpu_session import Port
from onnxplain.errors import UnsupportedModel

TYPES = {
    "float": "TYPE_FP32",
    "double": "TYPE_FP64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
}


@dataclass(frozen=True)
class Config:
    """One model in Triton.

    rows: most rows of one run; 0: requests are never joined, and dims hold every axis. why: the reason for 0.
    parameters: key → text.
    """

    name: str
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    rows: int = 0
    why: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def dropped(self) -> list[str]:
        """Outputs without any axis or with one of length 0, which a configuration cannot name; Triton leaves them."""
        return [port.name for port in self.outputs if not self._sayable(port)]

    def text(self) -> str:
        """The file. Raises UnsupportedModel where Triton could not load the graph."""
        self._check()
        batched = self.rows > 0
        reason = " ".join(self.why.split())
        lines = [
            "# Written by onnxplain. Every tensor is named as in the graph.",
            *([f"# max_batch_size is 0: {reason}."] if not batched and reason else []),
            f"name: {quoted(self.name)}",
            'backend: "onnxruntime"',
            f"max_batch_size: {self.rows}",
        ]
        for kind, ports in (("input", self.inputs), ("output", [p for p in self.outputs if self._sayable(p)])):
            lines += [f"{kind} {{\n{self._tensor(port)}\n}}" for port in ports]
        if batched:
            lines.append("dynamic_batching { }")
        lines.append("instance_group { kind: KIND_AUTO }")
        lines += [
            f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}"
            for key, value in sorted(self.parameters.items())
        ]
        return "\n".join(lines) + "\n"

    def _tensor(self, port: Port) -> str:
        shape = port.shape[1:] if self.rows else port.shape
        dims = [dim if isinstance(dim, int) and dim > 0 else -1 for dim in shape]
        lines = [f"name: {quoted(port.name)}", f"data_type: {TYPES[element(port)]}"]
        if dims:
            lines.append(f"dims: [ {', '.join(map(str, dims))} ]")
        else:  # Triton has no empty dims: a client says [rows, 1] and the graph sees [rows]
            lines += ["dims: [ 1 ]", "reshape { shape: [ ] }"]
        return "\n".join(f"  {line}" for line in lines)

    def _sayable(self, port: Port) -> bool:
        return bool(port.shape) and 0 not in port.shape

    def _check(self) -> None:
        for port in (*self.inputs, *self.outputs):
            if element(port) not in TYPES:
                raise UnsupportedModel(
                    f"{port.name} is a {port.type}, and Triton serves tensors of {', '.join(TYPES)} only. Export the "
                    "model without it (a ZipMap at the end of a scikit-learn model: zipmap=False)."
                )
        for port in (*self.inputs, *(p for p in self.outputs if p.name.endswith(".relevance"))):
            if not self._sayable(port):
                raise UnsupportedModel(
                    f"{port.name} has the shape {list(port.shape)}: Triton serves no tensor without axes or entries."
                )


def element(port: Port) -> str:
    """What a tensor holds, in onnxruntime's word; the whole type for what is no tensor."""
    kind = port.type
    return kind[len("tensor(") : -1] if kind.startswith("tensor(") else kind


def quoted(text: str) -> str:
    """A string of protobuf's text format."""
    return '"' + "".join(f"\\{b:03o}" if b < 32 or b > 126 or b in b'"\\' else chr(b) for b in text.encode()) + '"'
