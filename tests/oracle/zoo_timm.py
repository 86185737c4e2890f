"""timm's architectures, each at its smallest, with random weights.

Pictures are as small as the architecture allows.
"""

from __future__ import annotations

import functools

import torch

from .specimens import Subject, calibrated, randomised
from .torchvision_stand_in import torchvision_if_missing

with torchvision_if_missing():
    import timm

# Pixels of a picture's side.
CONVOLUTIONAL = {
    32: """resnet10t vgg11 vgg11_bn mobilenetv2_035 repvgg_a0 lcnet_035 test_resnet test_efficientnet test_byobnet
        test_nfnet
        test_convnext""",
    64: """resnet18 resnet26d resnext26ts seresnext26t_32x4d legacy_seresnet18 densenet121 mobilenetv1_100
        mobilenetv3_small_050 mobilenetv3_large_075 mobilenetv4_conv_small_035 efficientnet_b0 tf_efficientnet_lite0
        efficientnet_b0_gn tf_efficientnetv2_b0 regnetx_002 regnety_002 regnetz_005 convnext_zepto_rms convnext_atto
        convnextv2_atto dpn48b hrnet_w18_small dla46_c dla46x_c ghostnet_050 ghostnetv2_100 ghostnetv3_050 mnasnet_small
        semnasnet_050 spnasnet_100 fbnetc_100 hardcorenas_a tinynet_e mobileone_s0 rexnet_100 selecsls42 skresnet18
        res2net50_14w_8s resnest14d resnetv2_18 resnetv2_50d_frn resnetblur18 starnet_s050 inception_next_atto
        repghostnet_050 mixnet_s gernet_s cspnext_tiny darknet17 ese_vovnet19b_slim_dw hgnetv2_b0 nf_regnet_b0
        eca_nfnet_l0 poolformer_s12 poolformerv2_s12 convmixer_768_32 mambaout_femto test_mambaout fasternet_t0
        repvit_m0_9 ecaresnet26t tf_mobilenetv3_small_minimal_100 lcnetv2_small rdnet_tiny resnet50_gn resnet32ts
        gcresnext26ts efficientnet_cc_b0_4e bat_resnext26ts""",
    96: "inception_v3 inception_v4 xception41 legacy_xception inception_resnet_v2 pnasnet5large",
}
ATTENTION = {
    "vit_tiny_patch16_224": {"img_size": 32},
    "vit_xsmall_patch16_clip_224": {"img_size": 32},
    "vit_relpos_small_patch16_224": {"img_size": 32, "depth": 3},
    "vit_small_patch16_dinov3": {"img_size": 32, "depth": 3},
    "deit_tiny_patch16_224": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {"img_size": 32},
    "deit3_small_patch16_224": {"img_size": 32, "depth": 3},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2},
    "beitv2_base_patch16_224": {"img_size": 32, "depth": 2},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 3},
    "cait_xxs24_224": {"img_size": 32, "depth": 3},
    "pit_ti_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (2, 2, 2, 2)},
    "swin_s3_tiny_224": {"img_size": 112, "depths": (2, 2, 2, 2)},
    "swinv2_tiny_window8_256": {"img_size": 64, "window_size": 4, "depths": (2, 2, 2, 2)},
    "swinv2_cr_tiny_224": {"img_size": 64, "window_size": 2, "depths": (2, 2, 2, 2)},
    "twins_pcpvt_small": {"img_size": 64, "depths": (1, 1, 2, 1)},
    "twins_svt_small": {"img_size": 64, "depths": (1, 1, 2, 1)},
    "tnt_s_patch16_224": {"img_size": 32, "depth": 3},
    "coat_tiny": {"img_size": 64},
    "coat_lite_tiny": {"img_size": 64},
    "crossvit_tiny_240": {"size": 240},
    "crossvit_9_dagger_240": {"size": 240},
    "convit_tiny": {"img_size": 32},
    "levit_128s": {"img_size": 64},
    "levit_conv_128s": {"img_size": 64},
    "visformer_tiny": {"img_size": 64},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 3},
    "mixer_s32_224": {"img_size": 64},
    "resmlp_12_224": {"img_size": 32},
    "gmlp_ti16_224": {"img_size": 32},
    "gmixer_12_224": {"img_size": 32},
    "caformer_s18": {"size": 64},
    "convformer_s18": {"size": 64},
    "test_maxvit": {"img_size": 64},
    "maxvit_pico_rw_256": {"img_size": 64},
    "maxvit_tiny_tf_224": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "test_coatnet": {"img_size": 64},
    "coatnet_pico_rw_224": {"img_size": 64, "depths": (1, 1, 2, 1)},
    "coatnext_nano_rw_224": {"img_size": 64, "depths": (1, 1, 2, 1)},
    "edgenext_xx_small": {"size": 64},
    "mobilevit_xxs": {"size": 64},
    "mobilevitv2_050": {"size": 64},
    "efficientformer_l1": {"size": 224},
    "efficientformerv2_s0": {"img_size": 64},
    "efficientvit_b0": {"size": 64},
    "efficientvit_m0": {"img_size": 64},
    "fastvit_t8": {"size": 64},
    "fastvit_sa12": {"size": 64},
    "nextvit_small": {"size": 64},
    "davit_tiny": {"size": 64, "depths": (1, 1, 1, 1)},
    "gcvit_xxtiny": {"img_size": 64, "window_ratio": (16, 16, 16, 32)},
    "mvitv2_tiny": {"img_size": 64},
    "mvitv2_small_cls": {"img_size": 64},
    "nest_tiny": {"img_size": 64},
    "pvt_v2_b0": {"size": 64},
    "pvt_v2_b2_li": {"size": 224, "depths": (1, 1, 1, 1)},
    "sequencer2d_s": {"size": 64, "layers": (1, 1, 1, 1)},
    "focalnet_tiny_srf": {"size": 64},
    "botnet26t_256": {"img_size": 64},
    "sebotnet33ts_256": {"img_size": 64},
    "halonet26t": {"size": 256},
    "eca_halonext26ts": {"size": 256},
    "lambda_resnet26t": {"size": 64},
    "lambda_resnet26rpt_256": {"img_size": 64},
    "volo_d1_224": {"img_size": 64},
    "swiftformer_xs": {"size": 64},
    "tiny_vit_5m_224": {"size": 224},
    "hiera_tiny_224": {"img_size": 64},
    "mobilenetv4_hybrid_medium_075": {"size": 64},
    "vit_base_patch16_rope_224": {"img_size": 32, "depth": 2, "embed_dim": 96, "num_heads": 2},
    "vit_base_patch16_siglip_224": {"img_size": 32, "depth": 2, "embed_dim": 96, "num_heads": 2},
    "vit_tiny_r_s16_p8_224": {"img_size": 64, "depth": 2},
    "vitamin_small_224": {"img_size": 64},
    "iformer_t": {"size": 64},
    "shvit_s1": {"size": 64},
    "lowformer_b0": {"size": 64},
    "cpubone_nano": {"size": 64},
    "efficientvim_m1": {"size": 64},
    "csatv2": {"size": 64},
    "flexivit_small": {"img_size": 32, "depth": 2},
    "samvit_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 96, "num_heads": 2},
    "naflexvit_base_patch16_gap": {"size": 32, "depth": 2, "embed_dim": 96, "num_heads": 2},
}
ARCHITECTURES: dict[str, dict] = {
    **{name: {"size": size} for size, names in CONVOLUTIONAL.items() for name in names.split()},
    **ATTENTION,
}
# Also written by torch's newer exporter.
DYNAMO = """
    test_resnet mobilenetv3_small_050 efficientnet_b0_gn convnext_zepto_rms vit_tiny_patch16_224
    swin_tiny_patch4_window7_224 levit_128s xcit_nano_12_p16_224 mixer_s32_224 test_maxvit mobilevit_xxs
    efficientvit_m0 fastvit_t8 botnet26t_256 halonet26t poolformerv2_s12 regnetz_005 eva02_tiny_patch14_224
""".split()  # noqa: SIM905

CALIBRATED = ("mixnet_s", "tf_efficientnetv2_b0", "regnetz_005", "mnasnet_small", "ghostnetv3_050")
# Expected outcomes; with (dynamo), by the newer exporter. Refused by every method, name -> what the reason contains:
REFUSED = {
    "mvitv2_tiny": "no derivative for Einsum",
    "mvitv2_small_cls": "no derivative for Einsum",
    "samvit_base_patch16_224": "no derivative for Einsum",
}
# Refused by lrp and epsilon, name -> the op without a rule:
REFUSED_RELEVANCE = {
    "convnext_zepto_rms": "Div",
    "resnetv2_50d_frn": "Div",
    "convnextv2_atto": "ReduceL2",
    "poolformerv2_s12": "Pow",
    "caformer_s18": "Pow",
    "convformer_s18": "Pow",
    "sequencer2d_s": "LSTM",
}
# Not exported by torch, or not as it answers:
UNEXPORTED = {
    "efficientnet_cc_b0_4e": "convolution for kernel of unknown shape",
    "bat_resnext26ts": "AssertionError",
    "halonet26t": "operator Unfold, input size not accessible",
    "eca_halonext26ts": "operator Unfold, input size not accessible",
    "volo_d1_224": "aten::col2im",
    "csatv2": "adaptive_avg_pool2d",
    "naflexvit_base_patch16_gap": "aten::_upsample_bicubic2d_aa",
}


def build(name: str) -> Subject:
    """The architecture with random weights and ten classes."""
    options = dict(ARCHITECTURES[name])
    size = options.pop("size", None) or options["img_size"]
    model = timm.create_model(name, pretrained=False, num_classes=10, exportable=True, **options)
    if name.startswith("vgg"):  # whose head has 400 MB of weights and takes 224 pixels
        model.pre_logits, model.head = timm.models.vgg.ConvMlp(512, 64, 1), timm.layers.ClassifierHead(64, 10)
    model = randomised(model)
    if name in CALIBRATED:
        calibrated(model, pictures(size, 8, 0)["input"])
    return Subject(model, functools.partial(pictures, size), "input")


def pictures(size: int, batch: int, random_seed: int) -> dict[str, torch.Tensor]:
    """Standard normal pixels, (batch, 3, size, size)."""
    rng = torch.Generator().manual_seed(random_seed)
    return {"input": torch.randn(batch, 3, size, size, generator=rng)}
