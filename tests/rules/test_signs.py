"""What the registry calls non-negative is: half the convolutions are left out on its word."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from support import Misfit, evaluate, one_node, precision, registered_cases, run, sample

from onnxplain.graph.node import Node
from onnxplain.graph.signs import nonnegative
from onnxplain.graph.streams import track
from onnxplain.vjp import OPS, axis_rules, sign_rules

CASES = [c for c in registered_cases() if OPS[c[0]].sign is not None]


@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=[f"{name}-{i}" for name, i, _ in CASES])
def test_a_tensor_called_nonnegative_is(op_type, index, case):
    """With every choice of inputs that are >= 0, the others of either sign, over several draws."""
    domain = OPS[op_type].domain
    dtype = precision(op_type, case, domain)
    execute = evaluate if dtype is np.float64 else run
    names = [name for name, given in case.inputs.items() if isinstance(given, tuple)]
    try:
        built = one_node(op_type, case, dtype, domain=domain)
    except Misfit as error:
        pytest.skip(str(error))
    for known in itertools.chain.from_iterable(itertools.combinations(names, n) for n in range(len(names) + 1)):
        if not claims(op_type, case, known, domain):
            continue
        for draw in range(5):
            feeds = sample(case, np.random.default_rng(draw), dtype)
            feeds = {n: np.abs(feeds[n]) if n in known else feeds[n] for n in names}
            y = execute(built.proto, {**feeds, "seed": np.zeros(built.shape, dtype)})["y0"]
            assert not (y < 0).any(), f"{known} are >= 0 and the output has {y.min()}"


def claims(op_type, case, known, domain):
    """Whether the sign rule says so, for a node of the case with these inputs known."""
    values = []
    for name, given in case.inputs.items():
        if given is None:
            values.append(None)
        elif isinstance(given, tuple):
            values.append(ir.Value(name=name, shape=ir.Shape(given), type=ir.TensorType(ir.DataType.FLOAT)))
        else:
            values.append(ir.Value(name=name, shape=ir.Shape(given.shape), const_value=ir.tensor(given, name=name)))
    node = ir.Node(
        domain, op_type, values, ir.convenience.convert_attributes(case.attributes), num_outputs=case.outputs
    )
    view = Node.of(node, case.opset)
    given = [v for v in values if v is not None and v.name in known]
    return node.outputs[0] in nonnegative([view], sign_rules(), given)


def test_an_op_of_another_domain_is_not_known_by_its_name():
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    for domain, known in (("", True), ("org.example", False)):
        node = ir.Node(domain, "Relu", [x])
        node.outputs[0].shape = ir.Shape([2])
        assert (node.outputs[0] in nonnegative([Node.of(node)], sign_rules())) == known
        assert (track([Node.of(node)], [x], axis_rules())[node.outputs[0]] == 0) == known
