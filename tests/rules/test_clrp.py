"""CLRP as its paper has it: biases bypassed, a score of either sign, no logit near 0 that takes over."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import compiled, net, normal, one_hot, relu_net

from onnxplain.errors import UsageError

X = normal(1, 2, 6, 6)


def relevance(model, folder, method, **options):
    seed = options.pop("seed", one_hot((1, 4), 1))
    return compiled(model, folder, method, **options).run(x=X, seed=seed)["x.relevance"]


def with_bias(amount: float) -> onnx.ModelProto:
    model = relu_net(bias=False)
    for tensor in model.graph.initializer:
        if tensor.name in ("b1", "b2", "b3"):
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(array, amount), tensor.name))
    return model


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_biases_are_bypassed_in_every_layer(method, tmp_path):
    file = compiled(with_bias(0.2), tmp_path, method, ledger=True)
    assert all("bias=drop" in rule for rule in file.about["rules"].values() if rule.startswith("z_plus"))
    ledger = file.run(x=X, seed=one_hot((1, 4), 1))["onnxplain.ledger"]
    np.testing.assert_allclose(ledger[..., file.about["ledger"]["columns"].index("bias")], 0)


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_a_negative_logit_does_not_turn_the_map_round(method, tmp_path):
    """The map of a class is the same whether its logit is just above or, by its bias alone, below zero."""

    def shifted(amount: float) -> onnx.ModelProto:
        model = relu_net(bias=False)
        bias = next(t for t in model.graph.initializer if t.name == "b3")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, amount, np.float32), "b3"))
        return model

    logit = compiled(relu_net(bias=False), tmp_path, "gradient").run(x=X, seed=one_hot((1, 4), 1))["logits"][0, 1]
    up = relevance(shifted(-logit + 1), tmp_path, method)
    down = relevance(shifted(-logit - 1), tmp_path, method)
    assert up.max() > 0
    np.testing.assert_allclose(down, up, rtol=1e-3, atol=1e-5)  # float32, stabiliser 1e-6


@pytest.mark.parametrize("rule", ["epsilon", "zero", "epsilon(epsilon=0.1)", "norm"])
def test_clrp1_refuses_a_last_rule_that_divides_by_the_logits(rule, tmp_path):
    with pytest.raises(UsageError, match=r"Gemm.*divides by them.*clrp2"):
        compiled(relu_net(), tmp_path, "clrp1", rules=[f"last={rule}"])
    compiled(relu_net(), tmp_path, "clrp2", rules=[f"last={rule}"])
    compiled(relu_net(), tmp_path, "clrp1", form="code", rules=[f"last={rule}"])  # starts from |y| everywhere


def test_clrp1_refuses_sums_of_either_sign_above_the_last_layer(tmp_path):
    text = "g (float[N, 2, 6, 6] x) => (float[N, 4] y) { h = Conv (x, w) y = ReduceMean <keepdims = 0> (h, axes) }"
    model = net(text, w=normal(4, 2, 3, 3), axes=np.array([2, 3]))
    with pytest.raises(UsageError, match="ReduceMean"):
        compiled(model, tmp_path, "clrp1")
    rectified = text.replace(
        "y = ReduceMean <keepdims = 0> (h, axes)", "r = Relu (h) y = ReduceMean <keepdims = 0> (r, axes)"
    )
    compiled(net(rectified, w=normal(4, 2, 3, 3), axes=np.array([2, 3])), tmp_path, "clrp1")
