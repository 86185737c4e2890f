"""onnxplain's LRP composites against zennit's, on the same merged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from . import ours, peers
from .laws import difference, one_hot, well_conditioned_input

pytestmark = pytest.mark.oracle

FLOAT32 = 1e-5  # ours float32, zennit float64; zennit's own float32 run is 4e-7 to 5e-6 from it
# A residual sum divides by what two branches left over. In ResNet-50 that is before a ReLU, in MobileNetV2 between two
# linear layers, where it comes near 0 more often. zennit's own float32 run is 4e-5 and 1.3e-4 from its float64 one.
RESIDUAL = {"resnet50": 1e-4, "mobilenet_v2": 1e-3}
LIKE_ZENNIT = ("type:Add=norm",)  # our default for residual sums is add_abs

# Name, options for ours, options for zennit. Epsilon on convolutions needs a wide stabiliser to be comparable at all:
# see laws.well_conditioned_input.
EPSILON = ("epsilon", {"rules": ("type:Conv=epsilon(epsilon=0.1)", "type:Gemm=epsilon(epsilon=0.1)")}, {"epsilon": 0.1})
COMPOSITES = [
    EPSILON,
    ("epsilon_plus", {}, {}),
    ("epsilon_plus_flat", {}, {}),
    ("epsilon_alpha2_beta1", {}, {}),
    ("epsilon_alpha2_beta1_flat", {}, {}),
    ("epsilon_gamma_box", {"rules": ("first=box(low=-3.0,high=3.0)",)}, {"low": -3.0, "high": 3.0}),
]


def compare(model, path, composite, given, theirs, batch):
    """Difference between our composite and zennit's, seeded with every sample's largest logit.

    given, theirs: options for ours and for zennit.
    """
    x = well_conditioned_input(model, batch)
    with torch.no_grad():
        seed = one_hot(model(x).numpy())
    pools = tuple(dict.fromkeys(tensor for op_type, tensor in peers.kinks(path) if op_type == "MaxPool"))
    run = ours.explain(path, "lrp", x.numpy(), seed, composite=composite, keep=pools, **given)
    expected = peers.zennit_relevance(model, x, seed, composite, path, run, **theirs)
    return difference(run["input.relevance"], expected)


@pytest.mark.parametrize("composite", ["epsilon_plus_flat", "epsilon_alpha2_beta1_flat"])
def test_vgg16_at_full_size_equals_zennit(network, composite):
    assert compare(*network("vgg16", full=True), composite, {}, {}, batch=1) < FLOAT32


@pytest.mark.parametrize("name", ["vgg16", "alexnet", "small_cnn"])
@pytest.mark.parametrize("composite, given, theirs", COMPOSITES, ids=[name for name, *_ in COMPOSITES])
def test_composites_equal_zennit_with_a_dynamic_batch(network, name, composite, given, theirs):
    assert compare(*network(name), composite, given, theirs, batch=3) < FLOAT32


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize(
    "composite, given, theirs", [EPSILON, *(COMPOSITES[i] for i in (2, 4))], ids=lambda v: str(v)[:30]
)
def test_residual_networks_equal_zennit_under_its_norm_rule(network, name, composite, given, theirs):
    given = {"rules": (*LIKE_ZENNIT, *given.get("rules", ()))}
    assert compare(*network(name, merged=True), composite, given, theirs, batch=2) < RESIDUAL[name]


def test_the_relevance_starts_from_seed_times_logit(network):
    model, path = network("small_cnn")
    x = model.example(1)["input"]
    seed = np.eye(10, dtype=np.float32)[[4]]
    one = ours.ours(path, "lrp", x.numpy(), seed, composite="epsilon_plus")
    two = ours.ours(path, "lrp", x.numpy(), 2 * seed, composite="epsilon_plus")
    assert difference(two, 2 * one) < FLOAT32
    assert difference(one, peers.zennit_relevance(model, x, seed, "epsilon_plus")) < FLOAT32
