"""What is explained, what it is attributed to, and what must keep its name: decided on the source model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxplain.errors import UnknownName, UnsupportedModel, UsageError
from onnxplain.graph.node import FLOATS, Node
from onnxplain.graph.walk import dependent_values
from onnxplain.vjp import registered


@dataclass(frozen=True)
class Request:
    """What a user asks of a compiled graph.

    explain: tensors to explain, `("*",)` for every float output, () for the default. head: step back over a final
    softmax or sigmoid (`cut`, the default) or not (`keep`); a tensor that is named is explained as it is. seed: a float
    tensor, or a class `index`. attribute_to: tensors to attribute to, () for the inputs. keep: forward tensors to add
    as outputs. ledger: book where relevance went. fold: store derived weights rather than have onnxruntime make them.
    reference: the forward pass once more, on inputs `<input>.reference`, for rules that read `op.reference(value)`.
    """

    explain: tuple[str, ...] = ()
    head: str = ""
    seed: str = "tensor"
    attribute_to: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    ledger: bool = False
    fold: bool = False
    reference: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("head", ("cut", "keep")), ("seed", ("tensor", "index"))):
            if getattr(self, name) not in (*allowed, *([""] if name == "head" else [])):
                raise UsageError(f"{name} is {' or '.join(allowed)}, not {getattr(self, name)!r}.")
        if self.head and self.explain:
            raise UsageError(
                f"head {self.head!r} says nothing where the explained tensor is named ({', '.join(self.explain)}): "
                "that one is explained as it is. Give one of the two."
            )
        if "*" in self.explain and len(self.explain) > 1:
            raise UsageError("explain '*' is every float output of the model, and stands alone.")
        for name in ("explain", "attribute_to", "keep"):
            given = getattr(self, name)
            if twice := [tensor for n, tensor in enumerate(given) if tensor in given[:n]]:
                raise UsageError(f"{name.replace('_', '-')}: {twice[0]!r} is named twice.")


@dataclass(frozen=True)
class Resolved:
    """Explained tensors by name, how the head of each was cut (`""`: not), names that normalisation must keep.

    problem: why nothing can be explained, of a model that was made ready to answer all the same.
    """

    explained: tuple[str, ...]
    heads: Mapping[str, str] = field(default_factory=dict)
    protected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""

    def require_explained(self) -> None:
        """Raise UnsupportedModel where there is nothing to explain."""
        if self.problem:
            raise UnsupportedModel(self.problem)


def require_computed(graph: ir.Graph, name: str) -> None:
    """Raise UnsupportedModel for a tensor of a normalised model that is a constant."""
    if name in graph.initializers:
        raise UnsupportedModel(f"tensor {name!r} is a constant: it does not depend on the inputs of the model.")


def require_reached(graph: ir.Graph, explained: Sequence[str]) -> None:
    """Raise UnsupportedModel where no input of a normalised model reaches what is explained."""
    for name in explained:
        require_computed(graph, name)
    reached = dependent_values([Node.of(node) for node in graph], list(graph.inputs))
    if not any(str(value.name) in explained for value in reached):
        names = ", ".join(explained)
        raise no_attribution(graph, " ".join(f"{names} does not depend on {value.name}." for value in graph.inputs))


def no_attribution(graph: ir.Graph, why: str) -> UnsupportedModel:
    """The error where nothing can get relevance. why: in sentences."""
    near = ", ".join(candidates(graph))
    return UnsupportedModel(f"nothing to attribute to: {why} Name a tensor by --attribute-to: {near}.")


def resolve(model: ir.Model, request: Request) -> Resolved:
    """Choose the explained tensors of a source model."""
    values = tensors(model.graph)
    for name in (*request.attribute_to, *request.keep, *(n for n in request.explain if n != "*")):
        if name not in values:
            raise UnknownName("tensor", name, values)
    notes: list[str] = []
    heads: dict[str, str] = {}
    floats = [value for value in model.graph.outputs if _may_be_float(value)] or _mapped(model.graph)
    if request.explain == ("*",):
        explained = [str(value.name) for value in floats]
    elif request.explain:
        explained = list(request.explain)
    else:
        explained = []
        if floats:
            cut, head = _below_head(floats[0]) if request.head != "keep" else (floats[0], "")
            explained = [str(cut.name)]
            heads[str(cut.name)] = head
            if head:
                notes.append(
                    f"explaining {cut.name}, the tensor below the final {head} of {floats[0].name} "
                    "(--head keep explains the output itself)"
                )
    if not explained:
        kinds = ", ".join(f"{value.name} ({value.dtype})" for value in model.graph.outputs)
        raise UnsupportedModel(f"no float output to explain among {kinds}. Name a float tensor by --explain.")
    for name in explained:
        dtype = values[name].dtype
        if dtype is not None and dtype not in FLOATS:
            raise UsageError(f"--explain {name}: it is {dtype.name.lower()}, and only float tensors can be explained.")
    protected = dict.fromkeys((*explained, *request.attribute_to, *request.keep))
    return Resolved(tuple(explained), heads, tuple(protected), tuple(notes))


def tensors(graph: ir.Graph) -> dict[str, ir.Value]:
    """Every tensor of a graph that can be named: inputs and node outputs."""
    found = {str(value.name): value for value in graph.inputs if value.name not in graph.initializers}
    for node in graph:
        found.update((str(value.name), value) for value in node.outputs if value.name)
    return found


def _may_be_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype in FLOATS


def _mapped(graph: ir.Graph) -> list[ir.Value]:
    """What ZipMap makes dictionaries of: the scores of a classifier that answers in no other way."""
    makers = [node for node in (value.producer() for value in graph.outputs) if node is not None]
    return [node.inputs[0] for node in makers if node.op_type == "ZipMap" and node.inputs[0] is not None]


def _below_head(output: ir.Value) -> tuple[ir.Value, str]:
    """The input of a final softmax or sigmoid, and which one it was; the output itself where there is none."""
    value = output
    while (node := value.producer()) is not None and node.domain in ("", "ai.onnx"):
        below = node.inputs[0] if node.inputs else None
        if below is None:
            break
        entry = registered(Node.of(node))
        head = entry.head if entry is not None else ""
        if head == "cut":
            return below, node.op_type
        if head != "through" or (below.dtype is not None and below.dtype not in FLOATS):
            break
        value = below
    return output, ""


def candidates(graph: ir.Graph, limit: int = 8) -> Sequence[str]:
    """Float tensors computed from the inputs, for messages."""
    names = [str(v.name) for node in graph for v in node.outputs if v.dtype in FLOATS and v.const_value is None]
    return names[:limit]
