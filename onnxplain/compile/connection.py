"""What of one model is fed to what of another: named or inferred, its types and shapes checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxplain.compile.lengths import Lengths, axes
from onnxplain.errors import UnknownName, UnsupportedModel, UsageError
from onnxplain.frontend.passes.constants import inline_functions
from onnxplain.frontend.passes.shapes import infer_shapes
from onnxplain.graph.node import dims

Connect = Mapping[str, str | Sequence[str]]
Pairs = Mapping[str, str]
"""Input of the second model → output of the first that is fed to it."""


class PortConnection:
    """The tensors that join two models. pairs: as `Pairs`; lengths: what the two models' axes are in the whole.

    Raises UnknownName, UsageError, UnsupportedModel.
    """

    def __init__(self, first: ir.Model, second: ir.Model, connect: Connect | None) -> None:
        inferred = first.clone()
        inline_functions(inferred)
        infer_shapes(inferred)
        self.outputs = {str(value.name): value for value in inferred.graph.outputs}
        self.inputs = {str(value.name): value for value in second.graph.inputs}
        self.pairs: Pairs = self._inferred() if connect is None else self._named(connect)
        self.lengths = Lengths()
        for target, source in self.pairs.items():
            if (problem := self._problem(source, target, self.lengths)) is not None:
                raise UnsupportedModel(f"{problem}.")

    def _named(self, connect: Connect) -> Pairs:
        if not isinstance(connect, Mapping):
            raise UsageError(f"connect is a table of outputs and inputs, such as {{'y': 'x'}}, not {connect!r}.")
        pairs: dict[str, str] = {}
        for source, targets in connect.items():
            if source not in self.outputs:
                raise UnknownName("output of the first model", source, self.outputs)
            for target in (targets,) if isinstance(targets, str) else targets:
                if target not in self.inputs:
                    raise UnknownName("input of the second model", target, self.inputs)
                if target in pairs:
                    raise UsageError(
                        f"the input {target} of the second model is fed twice, by {pairs[target]} and {source}."
                    )
                pairs[target] = source
        if not pairs:
            raise UsageError(f"nothing is connected: {self._ports()}.")
        return pairs

    def _inferred(self) -> Pairs:
        """Tensors of one name, else the only two that fit."""
        if alike := [name for name in self.outputs if name in self.inputs]:
            return {name: name for name in alike}
        pairs = [(s, t) for s in self.outputs for t in self.inputs]
        problems = [self._problem(s, t, Lengths()) for s, t in pairs]
        if len(pairs) == 1 and problems[0] is not None:
            raise UnsupportedModel(f"{problems[0]}.")
        fitting = [pair for pair, problem in zip(pairs, problems, strict=True) if problem is None]
        if len(fitting) != 1:
            several = ", ".join(f"{s}={t}" for s, t in fitting) or "none"
            raise UsageError(
                f"what feeds what is not clear (fitting: {several}): {self._ports()}. Say it: --connect OUT=IN."
            )
        ((source, target),) = fitting
        return {target: source}

    def _ports(self) -> str:
        outputs, inputs = (", ".join(map(described, ports.values())) for ports in (self.outputs, self.inputs))
        return f"the first model gives {outputs}; the second takes {inputs}"

    def _problem(self, source: str, target: str, lengths: Lengths) -> str | None:
        """Why an output cannot be fed to an input; what is learned of lengths goes to `lengths`."""
        output, entry = self.outputs[source], self.inputs[target]
        said = f"{described(output)}, an output of the first model, cannot be fed to {described(entry)} of the second"
        for value in (output, entry):
            if not isinstance(value.type, ir.TensorType):
                return f"{said}: {value.name} is not known to be a tensor"
        if output.dtype != entry.dtype:
            return f"{said}: their types differ"
        if output.shape is None or entry.shape is None:
            return None
        if len(output.shape) != len(entry.shape):
            return f"{said}: they have {len(output.shape)} and {len(entry.shape)} axes"
        for axis, (a, b) in enumerate(zip(axes(output, 0), axes(entry, 1), strict=True)):
            if not lengths.unify(a, b):
                return f"{said}: axis {axis} is {lengths.of(a)} in the one and {lengths.of(b)} in the other"
        return None


def described(value: ir.Value) -> str:
    """A port with its type and shape: x float[N, 3, 224, 224]."""
    kind = value.dtype.name.lower() if isinstance(value.type, ir.TensorType) and value.dtype else "no tensor"
    shape = "" if value.shape is None else "[" + ", ".join("?" if d is None else str(d) for d in dims(value)) + "]"
    return f"{value.name} {kind}{shape}"
