"""The networks every comparison runs on: plain torch modules with random weights, written here, exported to ONNX.

Module-only (no functional call, nothing in place), because the peers see modules and nothing else. Shared by
tests/oracle and benchmarks. `python tests/oracle/networks.py vgg16 vgg16.onnx` writes one file.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 1000
OPSET = 18


class Network(nn.Module):
    """A module that knows its inputs.

    shapes: input name -> shape of one sample. Names are those of the exported model; its output is called logits.
    """

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        self.shapes = shapes

    def example(self, batch: int = 2, random_seed: int = 0) -> dict[str, Tensor]:
        """Standard normal inputs, (batch, *shape) each."""
        rng = torch.Generator().manual_seed(random_seed)
        return {name: torch.randn(batch, *shape, generator=rng) for name, shape in self.shapes.items()}


class Chain(Network):
    """Layers one after the other, from one square RGB image to logits."""

    def __init__(self, size: int, *layers: nn.Module):
        super().__init__(input=(3, size, size))
        self.layers = nn.Sequential(*layers)

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, 3, size, size) to logits (N, classes)."""
        return self.layers(input)


class Add(nn.Module):
    """a + b as a module, so that a peer can put a rule on it."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two tensors of one shape to their sum."""
        return a + b


class Residual(nn.Module):
    """last(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module):
        super().__init__()
        self.body, self.shortcut, self.add, self.last = body, shortcut, Add(), last

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the shape body gives."""
        return self.last(self.add(self.body(x), self.shortcut(x)))


class Attention(nn.Module):
    """Multi-head self-attention by hand. folded: the heads go into the batch axis, as in older exports."""

    def __init__(self, features: int, heads: int, folded: bool = False):
        super().__init__()
        self.heads, self.width, self.folded = heads, features // heads, folded
        self.query, self.key, self.value, self.out = (nn.Linear(features, features) for _ in range(4))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, absent: Tensor | None = None) -> Tensor:
        """X (N, T, features) to the same; absent: bool (N, 1, 1, T), keys nobody may look at."""
        samples, tokens, features = x.shape

        def split(y: Tensor) -> Tensor:
            y = y.reshape(samples, tokens, self.heads, self.width).transpose(1, 2)
            return y.reshape(samples * self.heads, tokens, self.width) if self.folded else y

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(-1, -2) / self.width**0.5
        if absent is not None:
            scores = scores.masked_fill(absent, -1e4)
        mixed = self.softmax(scores) @ value
        if self.folded:
            mixed = mixed.reshape(samples, self.heads, tokens, self.width)
        return self.out(mixed.transpose(1, 2).reshape(samples, tokens, features))


class EncoderLayer(nn.Module):
    """A transformer layer; norm_first: LayerNorm inside the branch (ViT) or after the sum (BERT)."""

    def __init__(self, features: int, heads: int, norm_first: bool, folded: bool = False):
        super().__init__()
        self.norm_first = norm_first
        self.attention = Attention(features, heads, folded)
        self.mlp = nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(2))
        self.adds = nn.ModuleList(Add() for _ in range(2))

    def forward(self, x: Tensor, absent: Tensor | None = None) -> Tensor:
        """X (N, T, features) to the same."""
        if self.norm_first:
            x = self.adds[0](x, self.attention(self.norms[0](x), absent))
            return self.adds[1](x, self.mlp(self.norms[1](x)))
        x = self.norms[0](self.adds[0](x, self.attention(x, absent)))
        return self.norms[1](self.adds[1](x, self.mlp(x)))


class VisionTransformer(Network):
    """Patches by a strided convolution, a class token, learned positions, encoder layers, a linear head."""

    def __init__(self, size: int, patch: int, features: int, heads: int, depth: int, classes: int, folded: bool):
        super().__init__(input=(3, size, size))
        self.patches = nn.Conv2d(3, features, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, features))
        self.position = nn.Parameter(0.5 * torch.randn(1, (size // patch) ** 2 + 1, features))
        self.encoder = nn.ModuleList(EncoderLayer(features, heads, True, folded) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(features), nn.Linear(features, classes)

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, 3, size, size) to logits (N, classes)."""
        x = self.patches(input).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for layer in self.encoder:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Bert(Network):
    """Token ids and an attention mask to logits: embeddings, encoder layers, tanh pooler, linear head."""

    def __init__(self, vocabulary: int, tokens: int, features: int, heads: int, depth: int, classes: int):
        super().__init__(tokens=(tokens,), mask=(tokens,))
        self.vocabulary = vocabulary
        self.words = nn.Embedding(vocabulary, features)
        self.position = nn.Parameter(torch.randn(1, tokens, features))
        self.norm = nn.LayerNorm(features)
        self.encoder = nn.ModuleList(EncoderLayer(features, heads, False) for _ in range(depth))
        self.pooler = nn.Sequential(nn.Linear(features, features), nn.Tanh())
        self.head = nn.Linear(features, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask, int64 (N, T), to logits (N, classes)."""
        x = self.norm(self.words(tokens) + self.position)
        absent = (mask == 0)[:, None, None, :]
        for layer in self.encoder:
            x = layer(x, absent)
        return self.head(self.pooler(x[:, 0]))

    def example(self, batch: int = 2, random_seed: int = 0) -> dict[str, Tensor]:
        """Random ids; sample n hides its last n % 3 tokens."""
        rng = torch.Generator().manual_seed(random_seed)
        (length,) = self.shapes["tokens"]
        mask = torch.ones(batch, length, dtype=torch.int64)
        for sample in range(batch):
            mask[sample, length - sample % 3 :] = 0
        return {"tokens": torch.randint(self.vocabulary, (batch, length), generator=rng), "mask": mask}


class Recurrent(Network):
    """nn.LSTM or nn.GRU over (N, T, features), batch first; the mean over time goes to a linear head."""

    def __init__(
        self, kind: type[nn.Module], features: int, hidden: int, steps: int, bidirectional: bool, classes: int
    ):
        super().__init__(input=(steps, features))
        self.rnn = kind(features, hidden, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(hidden * (1 + bidirectional), classes)

    def forward(self, input: Tensor) -> Tensor:
        """Sequences (N, T, features) to logits (N, classes)."""
        outputs, _ = self.rnn(input)
        return self.head(outputs.mean(1))


def randomised(model: Network, random_seed: int = 0) -> Network:
    """The model in eval mode with He-initialised weights, small biases and batch norms that are far from identity.

    The last batch norm of a residual branch is scaled by 0.3, else sixteen blocks would double the variance each.
    """
    rng = torch.Generator().manual_seed(random_seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=rng)
                if module.bias is not None:
                    module.bias.normal_(0, 0.05, generator=rng)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=rng)
                module.bias.normal_(0, 0.1, generator=rng)
                module.running_mean.normal_(0, 0.3, generator=rng)
                module.running_var.uniform_(0.5, 1.5, generator=rng)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5, generator=rng)
                module.bias.normal_(0, 0.1, generator=rng)
            elif not list(module.children()):
                for parameter in module.parameters():
                    parameter.normal_(0, 0.3, generator=rng)
        for module in model.modules():
            if isinstance(module, Residual) and isinstance(module.body[-1], nn.BatchNorm2d):
                module.body[-1].weight.mul_(0.3)
        for name, parameter in model.named_parameters(recurse=False):
            parameter.normal_(0, 0.5, generator=rng)
            assert name in ("token", "position")
    return model.eval()


def vgg16(width: float = 1.0, size: int = 224, classes: int = CLASSES) -> Network:
    """VGG16: thirteen 3x3 convolutions, five 2x2 max-pools, three linear layers."""
    layers: list[nn.Module] = []
    channels = 3
    for block in ([64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3):
        for wide in block:
            layers += [nn.Conv2d(channels, int(wide * width), 3, padding=1), nn.ReLU()]
            channels = int(wide * width)
        layers.append(nn.MaxPool2d(2, 2))
    hidden = int(4096 * width)
    layers += [nn.Flatten(), nn.Linear(channels * (size // 32) ** 2, hidden), nn.ReLU()]
    layers += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return randomised(Chain(size, *layers))


def alexnet(width: float = 1.0, size: int = 224, classes: int = CLASSES) -> Network:
    """AlexNet in torchvision's sizes: an 11x11 stride-4 first layer and overlapping max-pools."""
    a, b, c, d, hidden = (int(wide * width) for wide in (64, 192, 384, 256, 4096))
    side = ((size + 2 * 2 - 11) // 4 + 1 - 3) // 2 + 1  # after the first pool; the other two pools follow
    side = ((side - 3) // 2 + 1 - 3) // 2 + 1
    return randomised(
        Chain(
            size,
            *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Flatten(), nn.Linear(d * side**2, hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)),
        )
    )


def _conv_norm(channels: int, wide: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, wide, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(wide)]


def resnet50(width: float = 1.0, size: int = 224, classes: int = CLASSES) -> Network:
    """ResNet-50 (stride on the 3x3 convolution, as torchvision): bottlenecks of 3, 4, 6 and 3, batch norms."""
    channels = int(64 * width)
    layers: list[nn.Module] = [*_conv_norm(3, channels, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for wide, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        narrow = int(wide * width)
        for block in range(blocks):
            step = stride if block == 0 else 1
            body = [*_conv_norm(channels, narrow, 1), nn.ReLU(), *_conv_norm(narrow, narrow, 3, step), nn.ReLU()]
            body += _conv_norm(narrow, 4 * narrow, 1)
            same = nn.Sequential(*(_conv_norm(channels, 4 * narrow, 1, step) if block == 0 else []))
            layers.append(Residual(nn.Sequential(*body), same, nn.ReLU()))
            channels = 4 * narrow
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return randomised(Chain(size, *layers))


def mobilenet_v2(width: float = 1.0, size: int = 224, classes: int = CLASSES) -> Network:
    """MobileNetV2: inverted residuals with depthwise convolutions, ReLU6, batch norms."""
    channels = int(32 * width)
    layers: list[nn.Module] = [*_conv_norm(3, channels, 3, 2), nn.ReLU6()]
    for expand, wide, blocks, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(blocks):
            hidden, out, step = channels * expand, int(wide * width), stride if block == 0 else 1
            body = [*_conv_norm(channels, hidden, 1), nn.ReLU6()] if expand > 1 else []
            body += [*_conv_norm(hidden, hidden, 3, step, groups=hidden), nn.ReLU6(), *_conv_norm(hidden, out, 1)]
            if step == 1 and channels == out:
                layers.append(Residual(nn.Sequential(*body), nn.Sequential(), nn.Sequential()))
            else:
                layers += body
            channels = out
    last = int(1280 * max(1.0, width))
    layers += [*_conv_norm(channels, last, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return randomised(Chain(size, *layers, nn.Linear(last, classes)))


def small_cnn(width: float = 1.0, size: int = 32, classes: int = 10) -> Network:
    """Three convolutions, two max-pools, two linear layers; ReLU modules only."""
    a, b, hidden = int(16 * width), int(32 * width), int(64 * width)
    return randomised(
        Chain(
            size,
            *(nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, b, 3, stride=2), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(b * (((size // 2 - 3) // 2 + 1 - 3) // 2 + 1) ** 2, hidden), nn.ReLU()),
            nn.Linear(hidden, classes),
        )
    )


def vit(size: int = 32, patch: int = 8, features: int = 64, depth: int = 3, folded: bool = False) -> Network:
    """A small vision transformer; folded puts the heads into the batch axis."""
    return randomised(VisionTransformer(size, patch, features, 4, depth, 10, folded))


def bert(tokens: int = 12, features: int = 64, depth: int = 2) -> Network:
    """A small BERT-like text encoder: post-norm, masked attention."""
    return randomised(Bert(100, tokens, features, 4, depth, 5))


def lstm(bidirectional: bool = True) -> Network:
    """A sequence classifier on nn.LSTM."""
    return randomised(Recurrent(nn.LSTM, 8, 16, 12, bidirectional, 5))


def gru(bidirectional: bool = False) -> Network:
    """A sequence classifier on nn.GRU."""
    return randomised(Recurrent(nn.GRU, 8, 16, 12, bidirectional, 5))


NETWORKS = {
    build.__name__: build for build in (vgg16, alexnet, resnet50, mobilenet_v2, small_cnn, vit, bert, lstm, gru)
}


def folded(model: Network) -> Network:
    """A copy in which every batch norm is merged into the convolution before it: same outputs, no BatchNorm.

    LRP rules look at the sign of weights, so torch and ONNX must see the same merged ones.
    """
    model = copy.deepcopy(model)
    for chain in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        layers: list[nn.Module] = []
        for layer in chain:
            if isinstance(layer, nn.BatchNorm2d):
                layers[-1] = nn.utils.fusion.fuse_conv_bn_eval(layers[-1], layer)
            else:
                layers.append(layer)
        if len(layers) < len(chain):
            chain._modules = {str(index): layer for index, layer in enumerate(layers)}
    return model


def export(
    model: Network,
    path: Path | str,
    *,
    dynamic: bool = True,
    opset: int = OPSET,
    dynamo: bool = False,
    keep_batchnorm: bool = False,
) -> Path:
    """Write the model as ONNX; axis 0 is symbolic ("N") if dynamic, else 1.

    dynamo: torch's newer exporter. keep_batchnorm: the older one merges batch norms unless told otherwise.
    """
    example = model.example(batch=2 if dynamic else 1)
    training = torch.onnx.TrainingMode.PRESERVE if keep_batchnorm else torch.onnx.TrainingMode.EVAL
    options = {} if dynamo else {"training": training}
    if dynamic and dynamo:
        options["dynamic_shapes"] = {name: {0: torch.export.Dim("N")} for name in example}
    elif dynamic:
        options["dynamic_axes"] = {name: {0: "N"} for name in (*example, "logits")}
    if dynamo:
        options["external_data"] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter announces its retirement at every call
        torch.onnx.export(
            model,
            tuple(example.values()),
            str(path),
            input_names=list(example),
            output_names=["logits"],
            opset_version=opset,
            dynamo=dynamo,
            verbose=False,
            **options,
        )
    return Path(path)


def main() -> None:
    """Write one network as an ONNX file."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--merged", action="store_true", help="merge batch norms in torch first")
    arguments = parser.parse_args()
    model = NETWORKS[arguments.network]()
    export(folded(model) if arguments.merged else model, arguments.path)


if __name__ == "__main__":
    main()
