"""What the added nodes are made of: standard ops, symmetric pads, readable names, nothing idle."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir
import pytest
from nets import NAMES, compiled, net, normal, relu_net, repository

from onnxplain.compile import cuda
from onnxplain.composites import COMPOSITES
from onnxplain.errors import UnsupportedModel, UnsupportedOp
from onnxplain.methods import METHODS, of_family

NOT_ON_CUDA = {"MaxUnpool", "Col2Im"}


def every_node(nodes):
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from every_node(graph.node)


@pytest.fixture(
    scope="module",
    params=[(n, method) for n in (*NAMES, "relu_net") for method in of_family("one-pass")],
    ids="-".join,
)
def file(request, tmp_path_factory):
    name, method = request.param
    model = relu_net() if name == "relu_net" else repository(name)
    try:
        return compiled(model, tmp_path_factory.mktemp(name), method)
    except UnsupportedOp as error:
        pytest.skip(str(error))
    except UnsupportedModel as error:
        assert METHODS[method].maps or METHODS[method].weighed or METHODS[method].biases, error
        pytest.skip(str(error))


def test_added_nodes_are_standard_ops_with_kernels_on_cpu_and_cuda(file):
    for node in every_node(file.added):
        assert node.domain in ("", "ai.onnx"), node
        assert node.op_type not in NOT_ON_CUDA and node.op_type in cuda.KERNELS, node.op_type


def test_added_convolutions_and_pools_have_symmetric_pads(file):
    for node in every_node(file.added):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes.get("auto_pad", b"NOTSET") == b"NOTSET", node.name
        if node.op_type in ("Conv", "ConvTranspose", "AveragePool", "MaxPool"):
            pads = list(attributes.get("pads", []))
            assert pads[: len(pads) // 2] == pads[len(pads) // 2 :], node.name


def test_every_added_node_is_named_after_the_forward_node_it_belongs_to(file):
    graph = file.proto.graph
    seen = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    names = {n.name for n in graph.node if not n.name.startswith("backward/")} | {
        o for n in graph.node for o in n.output
    }
    added = False
    for node in graph.node:
        added = added or node.name.startswith("backward/")
        copied = node.name.endswith(".reference")
        assert not added or copied or node.name.startswith("backward/"), f"{node.name}: a forward node behind the rest"
        if node.name.count("/") > 1 and node.name.startswith("backward/"):
            assert node.name.removeprefix("backward/").rsplit("/", 1)[0] in names, node.name
        assert all(name in seen or not name for name in node.input), f"{node.name} is not in order"
        seen |= set(node.output)
    assert len({n.name for n in graph.node}) == len(graph.node)


def test_no_node_and_no_constant_is_idle(file):
    graph = file.proto.graph
    used = {name for node in every_node(graph.node) for name in node.input} | {v.name for v in graph.output}
    for node in file.added:
        assert any(name in used for name in node.output), f"{node.name} is used by nobody"
    assert not [t.name for t in graph.initializer if t.name not in used]


def test_no_identity_but_to_name_an_output(file):
    outputs = {v.name for v in file.proto.graph.output}
    assert not [n.name for n in file.added if n.op_type == "Identity" and n.output[0] not in outputs]
    casts = {n.output[0]: n for n in file.added if n.op_type == "Cast"}
    assert not [n.name for n in casts.values() if n.input[0] in casts], "a Cast of a Cast"


def test_no_work_is_done_twice(file):
    done = Counter(
        (n.op_type, tuple(n.input), tuple(a.SerializeToString() for a in n.attribute))
        for n in file.added
        if n.op_type != "Identity"
    )
    assert not [key for key, times in done.items() if times > 1]


def test_weights_are_not_doubled(file):
    source = onnx.load(file.explainer.subject.source.path)
    before = sum(t.ByteSize() for t in source.graph.initializer)
    added = [t for t in file.proto.graph.initializer if t.name.startswith("backward/")]
    assert all(np.prod(t.dims) <= 4096 for t in added), max(added, key=lambda t: np.prod(t.dims)).name
    assert sum(t.ByteSize() for t in file.proto.graph.initializer) <= 1.1 * before + 20_000


def test_a_model_checker_finds_nothing(file):
    onnx.checker.check_model(file.proto)


@pytest.mark.parametrize("method", ["gradient", "lrp"])
def test_derived_weights_are_stored_on_demand_and_change_nothing(method, tmp_path):
    (tmp_path / "folded").mkdir()
    for name in ("relu_net", "digits_vit"):
        model = relu_net() if name == "relu_net" else repository(name)
        lean, fat = compiled(model, tmp_path, method), compiled(model, tmp_path / "folded", method, fold=True)
        assert len(fat.added) < len(lean.added) or (method, name) == ("gradient", "relu_net")  # which derives none
        constant = {t.name for t in fat.proto.graph.initializer}
        assert not [n.name for n in fat.added if n.input and all(i in constant or not i for i in n.input)]
        shape = [2, 6, 6] if name == "relu_net" else [1, 28, 28]
        feeds = {fat.inputs[0]: normal(2, *shape), "seed": normal(2, 4 if name == "relu_net" else 10)}
        one, other = lean.run(**feeds), fat.run(**feeds)
        assert list(one) == list(other)
        for key, value in one.items():
            np.testing.assert_allclose(other[key], value, rtol=1e-4, atol=1e-4 * np.abs(value).max())


@pytest.mark.parametrize("composite", COMPOSITES)
def test_a_ledger_is_folded_as_well(composite, tmp_path):
    method = "lrp" if COMPOSITES[composite].make(None).relevance else None
    if method is None:
        pytest.skip("no relevance")
    options = {"composite": composite, "ledger": True}
    lean, fat = (
        compiled(relu_net(), tmp_path, "lrp", **options),
        compiled(relu_net(), tmp_path, "lrp", fold=True, **options),
    )
    feeds = {"x": normal(2, 2, 6, 6), "seed": normal(2, 4)}
    for key, value in lean.run(**feeds).items():
        np.testing.assert_allclose(fat.run(**feeds)[key], value, rtol=1e-3, atol=1e-3)


def test_forward_nodes_without_a_cuda_kernel_are_named():
    model = net(
        """g (float[N, 1, 6, 6] x) => (float[N, 1, 5, 5] y) {
            a = LpPool <kernel_shape = [2, 2]> (x)
            b = Celu (a)
            y = MaxPool <kernel_shape = [2, 2], pads = [0, 0, 1, 1]> (b)
        }"""
    )
    (note,) = cuda.notes(onnx_ir.from_proto(model).graph)
    assert "LpPool_0 (LpPool), MaxPool_2 (MaxPool)" in note and "Celu" not in note
    assert not cuda.notes(onnx_ir.from_proto(relu_net()).graph)
