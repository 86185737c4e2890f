"""transformers' families from tiny configurations with random weights: two layers, 32 features, 99 words.

A name is `<model type>`, with `.sdpa` behind it where scaled_dot_product_attention takes the place of the attention
written out. Every model ends in the mean over its tokens or pixels and a linear head, so that it gives logits (N, 3).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .specimens import Subject, randomised

WORDS, TOKENS, CLASSES = 99, 8, 3  # two windows of longformer

USUAL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
FEW_KEYS = {**USUAL, "num_key_value_heads": 2}
N_EMBD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SQUEEZED = {f"{part}_groups": 2 for part in ("q", "k", "v", "intermediate", "output")}
TEXT: dict[str, dict[str, Any]] = {
    "bert": USUAL,
    "roberta": USUAL,
    "camembert": USUAL,
    "electra": {**USUAL, "embedding_size": 16},
    "albert": {**USUAL, "embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    "deberta": {**USUAL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16},
    "deberta-v2": {**USUAL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "mpnet": USUAL,
    "layoutlm": USUAL,
    "megatron-bert": USUAL,
    "modernbert": {**USUAL, "pad_token_id": 0, "global_attn_every_n_layers": 2, "local_attention": 4},
    "nystromformer": {**USUAL, "segment_means_seq_len": 8, "num_landmarks": 8},
    "rembert": {**USUAL, "input_embedding_size": 16},
    "roformer": {**USUAL, "embedding_size": 16},
    "squeezebert": {**USUAL, "embedding_size": 32, **SQUEEZED},
    "convbert": {**USUAL, "embedding_size": 16},
    "mobilebert": {**USUAL, "embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "fnet": {**USUAL, "tpu_short_seq_length": TOKENS},
    "ibert": USUAL,
    "esm": {**USUAL, "position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 2,
            "token_dropout": False},
    "longformer": {**USUAL, "attention_window": 4},
    "big_bird": {**USUAL, "attention_type": "original_full"},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "funnel": {"d_model": 32,
               "block_sizes": [1, 1], "block_repeats": [1, 1], "architectures": ["FunnelModel"],
               "n_head": 4, "d_head": 8, "d_inner": 48},
    "openai-gpt": N_EMBD,
    "gpt2": N_EMBD,
    "gptj": {**N_EMBD, "rotary_dim": 4},
    "codegen": {**N_EMBD, "rotary_dim": 4},
    "gpt_bigcode": N_EMBD,
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4,
                "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    "gpt_neox": {**USUAL, "rotary_pct": 0.5},
    "opt": {**USUAL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**USUAL, "new_decoder_architecture": False, "multi_query": True, "ffn_hidden_size": 48},
    "llama": FEW_KEYS,
    "mistral": {**FEW_KEYS, "sliding_window": 4},
    "mixtral": {**FEW_KEYS, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen2": FEW_KEYS,
    "qwen3": {**FEW_KEYS, "head_dim": 8},
    "phi": {**FEW_KEYS, "partial_rotary_factor": 0.5},
    "phi3": {**FEW_KEYS, "pad_token_id": 0},
    "gemma": {**FEW_KEYS, "head_dim": 8},
    "gemma2": {**FEW_KEYS, "head_dim": 8, "sliding_window": 4},
    "stablelm": FEW_KEYS,
    "olmo": FEW_KEYS,
    "biogpt": USUAL,
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "intermediate_size": 64, "time_step_rank": 4},
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 8, "d_ff": 48},
    "bart": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
             "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "max_position_embeddings": 64},
    "clip_text_model": {**USUAL, "pad_token_id": 0},
}  # fmt: skip
PICTURE = {**USUAL, "image_size": 32, "patch_size": 8}
WINDOWS = {"depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
PIXELS: dict[str, dict[str, Any]] = {
    "vit": PICTURE,
    "deit": PICTURE,
    "beit": {**PICTURE, "use_relative_position_bias": True, "use_mean_pooling": False},
    "dinov2": PICTURE,
    "data2vec-vision": PICTURE,
    "clip_vision_model": PICTURE,
    "siglip_vision_model": PICTURE,
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, **WINDOWS},
    "swinv2": {"image_size": 32, "patch_size": 4, "embed_dim": 16, **WINDOWS},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "segformer": {**STAGES, "num_attention_heads": [1, 2, 2, 4]},
    "mobilevit": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 48], "image_size": 64},
    "poolformer": STAGES,
    "pvt_v2": {**STAGES, "num_attention_heads": [1, 2, 2, 4]},
    "focalnet": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
                 "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64},
    "levit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8]},
}  # fmt: skip
CONVOLUTIONS = {
    "conv_dim": [16, 16, 32],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,
}
SOUND: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "wav2vec2": ({**USUAL, **CONVOLUTIONS}, (400,)),
    "hubert": ({**USUAL, **CONVOLUTIONS}, (400,)),
    "wavlm": ({**USUAL, **CONVOLUTIONS}, (400,)),
    "whisper": ({"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
                 "num_mel_bins": 8,
                 "max_source_positions": 20, "decoder_layers": 1, "decoder_attention_heads": 4,
                 "vocab_size": WORDS, "pad_token_id": 0}, (8, 40)),
    "audio-spectrogram-transformer": ({**USUAL, "max_length": 32, "num_mel_bins": 16, "patch_size": 8, "time_stride": 8,
                                       "frequency_stride": 8}, (32, 16)),
}  # fmt: skip
SDPA = [
    "bert",
    "roberta",
    "distilbert",
    "gpt2",
    "gpt_neox",
    "opt",
    "falcon",
    "llama",
    "mistral",
    "qwen2",
    "phi",
    "gemma",
    "esm",
    "bart",
    "t5",
    "clip_text_model",
    "biogpt",
    "vit",
    "deit",
    "dinov2",
    "clip_vision_model",
    "siglip_vision_model",
    "wav2vec2",
    "whisper",
]
ARCHITECTURES = [*TEXT, *PIXELS, *SOUND, *(f"{name}.sdpa" for name in SDPA)]
DYNAMO = [name for name in ARCHITECTURES if "." in name or name not in SDPA]  # each family once

# Expected outcomes; with (dynamo), by the newer exporter. Refused by every method, name -> what the reason contains:
REFUSED = {
    "xlnet": "no derivative for Einsum",
    "funnel": "no derivative for Einsum",
    "fnet (dynamo)": "no derivative for DFT",
}
# Refused by lrp and epsilon, name -> the op without a rule:
REFUSED_RELEVANCE = {
    "mamba": "Exp",
    "rwkv": "Exp",
    "rwkv (dynamo)": "Pow",
    "ibert": "Sqrt",
    "convnextv2": "ReduceL2",
}
# Not exported by torch, or not as it answers:
UNEXPORTED = {
    "fnet": "aten::fft_fftn",
    "mixtral": "aten::histc",
    "mixtral (dynamo)": "grouped_mm_fallback",
    "xglm": "value cannot be converted to type float without overflow",
    "xglm (dynamo)": "value cannot be converted to type float without overflow",
    "longformer": "answers otherwise than torch",
    "longformer (dynamo)": "modeling_longformer.py",
    "xlnet (dynamo)": "aten::sub",
}


class Classifier(nn.Module):
    """A backbone, the mean over whatever is not a feature, a linear head."""

    def __init__(self, backbone: nn.Module, features: int, argument: str):
        super().__init__()
        self.backbone, self.argument = backbone, argument
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (N, …), mask (N, T) or None, to logits (N, CLASSES)."""
        masked = {} if mask is None else {"attention_mask": mask}
        y = self.backbone(**{self.argument: x}, **masked, return_dict=False)[0]
        return self.head(y.mean((2, 3)) if y.ndim == 4 else y.mean(1))


def build(name: str) -> Subject:
    """The family `name` with random weights."""
    family, _, attention = name.partition(".")
    text, sound = family in TEXT, SOUND.get(family)
    options = TEXT[family] if text else sound[0] if sound else PIXELS[family]
    config = transformers.AutoConfig.for_model(family, **options, **({"vocab_size": WORDS} if text else {}))
    if hasattr(config, "use_cache"):
        config.use_cache = False
    config._attn_implementation = attention or "eager"
    backbone = transformers.AutoModel.from_config(config, attn_implementation=attention or "eager")
    if family in ("t5", "bart", "whisper"):
        backbone = backbone.encoder
    if text:
        subject = tokens_and_mask if family not in MASKLESS else tokens
        model = Classifier(backbone, features(config), "input_ids")
        randomised(model)
        return Subject(model, subject, "tokens", backbone.get_input_embeddings())
    shape = sound[1] if sound else (3, options["image_size"], options["image_size"])
    argument = "pixel_values" if not sound else "input_features" if family == "whisper" else "input_values"
    model = randomised(Classifier(backbone, features(config), argument))
    return Subject(model, functools.partial(standard_normal, shape), "input")


MASKLESS = ("fnet", "rwkv", "mamba")


def features(config: Any) -> int:
    """Width of the last hidden state."""
    if getattr(config, "model_type", "") == "mobilevit":
        return int(config.neck_hidden_sizes[-1])
    for key in ("hidden_sizes", "hidden_size", "d_model", "dim", "n_embd", "emb_dim"):
        value = getattr(config, key, None)
        if value is not None:
            return int(value[-1]) if isinstance(value, list | tuple) else int(value)
    return int(config.embed_dim[-1])


def tokens(batch: int, random_seed: int) -> dict[str, Tensor]:
    """Token ids without the special ones, int64 (batch, TOKENS)."""
    rng = torch.Generator().manual_seed(random_seed)
    return {"tokens": torch.randint(5, WORDS - 5, (batch, TOKENS), generator=rng)}


def tokens_and_mask(batch: int, random_seed: int) -> dict[str, Tensor]:
    """The same with a mask that hides the first sample's last two tokens."""
    mask = torch.ones(batch, TOKENS, dtype=torch.int64)
    mask[0, -2:] = 0
    return {**tokens(batch, random_seed), "mask": mask}


def standard_normal(shape: tuple[int, ...], batch: int, random_seed: int) -> dict[str, Tensor]:
    """Pixels or samples, (batch, *shape)."""
    rng = torch.Generator().manual_seed(random_seed)
    return {"input": torch.randn(batch, *shape, generator=rng)}
