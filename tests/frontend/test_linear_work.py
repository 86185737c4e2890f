"""Work grows with the number of nodes and no faster. Counted in calls of functions, which no busy machine changes."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxplain.frontend.load import from_proto
from onnxplain.frontend.normalise import normalise
from onnxplain.frontend.passes.constants import remove_identities
from onnxplain.graph.node import Node
from onnxplain.graph.patterns import recognise

BLOCKS = 40
GROWTH = 1.2  # of what BLOCKS more cost: 1 where work is linear, 5/3 where it is quadratic
Weights = dict[str, np.ndarray]
Nodes = list[onnx.NodeProto]


def convolutions(i: int, x: str, weights: Weights) -> Nodes:
    weights |= {f"w{i}": np.full((2, 2, 3, 3), 0.1, np.float32)}
    weights |= {f"{name}{i}": np.full(2, 0.9, np.float32) for name in ("scale", "shift", "mean", "variance")}
    parameters = [f"{name}{i}" for name in ("scale", "shift", "mean", "variance")]
    return [
        helper.make_node("Conv", [x, f"w{i}"], [f"conv{i}"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", [f"conv{i}", *parameters], [f"norm{i}"]),
        helper.make_node("Relu", [f"norm{i}"], [f"relu{i}"]),
    ]


def shared_convolutions(i: int, x: str, weights: Weights) -> Nodes:
    """One weight for all layers, scaled for each by its own constant."""
    weights |= {"w": np.full((2, 2, 1, 1), 0.1, np.float32), f"scale{i}": np.full((2, 1, 1), 0.9, np.float32)}
    return [
        helper.make_node("Conv", [x, "w"], [f"conv{i}"]),
        helper.make_node("Mul", [f"conv{i}", f"scale{i}"], [f"mul{i}"]),
        helper.make_node("Relu", [f"mul{i}"], [f"relu{i}"]),
    ]


def transformers(i: int, x: str, weights: Weights) -> Nodes:
    weights |= {"w": np.full((4, 4), 0.1, np.float32), "b": np.full(4, 0.1, np.float32)}
    weights |= {"axes": np.array([-1]), "two": np.array(2, np.float32), "epsilon": np.array(1e-5, np.float32)}
    return [
        helper.make_node("MatMul", [x, "w"], [f"product{i}"]),
        helper.make_node("Add", [f"product{i}", "b"], [f"biased{i}"]),
        helper.make_node("Add", [x, f"biased{i}"], [f"sum{i}"]),
        helper.make_node("ReduceMean", [f"sum{i}", "axes"], [f"mean{i}"]),
        helper.make_node("Sub", [f"sum{i}", f"mean{i}"], [f"centred{i}"]),
        helper.make_node("Pow", [f"centred{i}", "two"], [f"square{i}"]),
        helper.make_node("ReduceMean", [f"square{i}", "axes"], [f"variance{i}"]),
        helper.make_node("Add", [f"variance{i}", "epsilon"], [f"positive{i}"]),
        helper.make_node("Sqrt", [f"positive{i}"], [f"deviation{i}"]),
        helper.make_node("Div", [f"centred{i}", f"deviation{i}"], [f"norm{i}"]),
    ]


def shape_arithmetic(i: int, x: str, weights: Weights) -> Nodes:
    weights |= {"zero": np.array([0]), "one": np.array([1]), "halves": np.array([2, 2])}
    return [
        helper.make_node("Shape", [x], [f"shape{i}"]),
        helper.make_node("Gather", [f"shape{i}", "zero"], [f"batch{i}"]),
        helper.make_node("Gather", [f"shape{i}", "one"], [f"length{i}"]),
        helper.make_node("Concat", [f"batch{i}", f"length{i}", "halves"], [f"split{i}"], axis=0),
        helper.make_node("Reshape", [x, f"split{i}"], [f"heads{i}"]),
        helper.make_node("Relu", [f"heads{i}"], [f"relu{i}"]),
        helper.make_node("Reshape", [f"relu{i}", f"shape{i}"], [f"joined{i}"]),
    ]


def identities(i: int, x: str, weights: Weights) -> Nodes:
    there, back = {"perm": [0, 2, 1]}, {"perm": [0, 2, 1]}
    return [
        helper.make_node("Relu", [x], [f"relu{i}"]),
        helper.make_node("Identity", [f"relu{i}"], [f"same{i}"]),
        helper.make_node("Dropout", [f"same{i}"], [f"kept{i}"]),
        helper.make_node("Transpose", [f"kept{i}"], [f"there{i}"], **there),
        helper.make_node("Transpose", [f"there{i}"], [f"back{i}"], **back),
    ]


def scalings(i: int, x: str, weights: Weights) -> Nodes:
    weights["half"] = np.array(0.5, np.float32)
    return [
        helper.make_node("Mul", [x, "half"], [f"scaled{i}"]),
        helper.make_node("Add", [f"scaled{i}", "half"], [f"shifted{i}"]),
    ]


CHAINS: dict[Callable[[int, str, Weights], Nodes], tuple[int | str, ...]] = {
    convolutions: ("batch", 2, 5, 5),
    shared_convolutions: ("batch", 2, 5, 5),
    transformers: ("batch", "tokens", 4),
    shape_arithmetic: ("batch", "tokens", 4),
    identities: ("batch", "tokens", 4),
    scalings: ("batch", 4),
}


def chain(block: Callable[[int, str, Weights], Nodes], blocks: int) -> onnx.ModelProto:
    nodes: Nodes = []
    weights: Weights = {}
    for i in range(blocks):
        nodes += block(i, nodes[-1].output[0] if nodes else "x", weights)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, CHAINS[block]) for name in ("x", nodes[-1].output[0])
    ]
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "chain", ports[:1], ports[1:], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def calls(work: Callable[[], object]) -> int:
    """How many functions are called, those of C and steps of generators included."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def growth(work: Callable[[int], Callable[[], object]]) -> float:
    """What the third lot of blocks costs, in units of the second; what is done once falls out."""
    work(2)()  # what is imported and cached at first use
    one, two, three = (calls(work(n * BLOCKS)) for n in (1, 2, 3))
    return (three - two) / (two - one)


@pytest.mark.parametrize("kept", ["nothing", "every tensor"])
@pytest.mark.parametrize("block", CHAINS, ids=lambda block: block.__name__)
def test_normalisation_is_linear_in_the_nodes(block, kept):
    def work(blocks: int) -> Callable[[], object]:
        source = from_proto(chain(block, blocks))
        names = [str(value.name) for node in source.model.graph for value in node.outputs]
        return lambda: normalise(source, names if kept == "every tensor" else ())

    assert growth(work) < GROWTH


@pytest.mark.parametrize("block", CHAINS, ids=lambda block: block.__name__)
def test_loading_is_linear_in_the_nodes(block):
    def work(blocks: int) -> Callable[[], object]:
        content = chain(block, blocks).SerializeToString()
        return lambda: from_proto(content)

    assert growth(work) < GROWTH


@pytest.mark.parametrize("block", CHAINS, ids=lambda block: block.__name__)
def test_recognising_patterns_is_linear_in_the_nodes(block):
    def work(blocks: int) -> Callable[[], object]:
        nodes = [Node.of(node) for node in from_proto(chain(block, blocks)).model.graph]
        return lambda: recognise(nodes, ())

    assert growth(work) < GROWTH


def test_taking_identities_out_is_linear_in_the_nodes():
    def work(blocks: int) -> Callable[[], object]:
        model = from_proto(chain(identities, blocks)).model
        return lambda: remove_identities(model.graph)

    assert growth(work) < GROWTH
