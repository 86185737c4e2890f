"""What loading costs: CPU seconds and peak memory of load + normalise, for models exported by torch.

    python benchmarks/loading.py            # makes the models in --folder where they are missing, then measures each
    python benchmarks/loading.py --compile  # also what `onnxplain compile` takes, verification of its file included

Each model is measured in a process of its own. `peak` is what the process grew by over its size before loading, in
multiples of the weights; the nodes take about 10 kB each of it. Of a compile it is compared with what a session of
onnxruntime's default options takes for the written file and one run, which verification cannot do without. Making
the models needs torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

GOALS = {"resnet50": 1.0, "vit12": 1.5, "transformer96": 8.0}  # CPU seconds
PEAK = 2.0  # times the weights
MEASURE = """
import json, resource, sys, time
from onnxplain.explainer import Explainer
from onnxplain.frontend.load import load
from onnxplain.frontend.normalise import normalise
grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, begun = grown(), time.process_time()
source = load(sys.argv[1])
loaded = time.process_time()
result = normalise(source)
done = time.process_time()
weights = sum(v.const_value.nbytes for v in source.model.graph.initializers.values())
print(json.dumps({
    "nodes": len(source.model.graph), "normalised": len(result.model.graph), "weights": weights,
    "load": loaded - begun, "normalise": done - loaded, "peak": (grown() - before) / weights,
    "steps": {name: round(seconds, 2) for name, seconds in result.timings.items()}, "notes": result.notes,
}))
"""
COMPILE = """
import resource, sys
from onnxplain.cli.compile import compile_command
grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = grown()
compile_command.main([sys.argv[1], "--method", "gradient", "-o", sys.argv[2]], standalone_mode=False)
print(grown() - before)
"""
SESSION = """
import resource, sys
import numpy as np, onnxruntime
grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = grown()
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
length = {"N": 2, "L": 64}  # as verification has it
session.run(None, {
    port.name: np.ones([length.get(n, 2) if isinstance(n, str) else n for n in port.shape],
                       np.int64 if "int64" in port.type else np.float32)
    for port in session.get_inputs()
})
print(grown() - before)
"""


def last_line(script: str, *arguments: str) -> str:
    """Of what a script prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def make(name: str, path: Path) -> None:
    """Export a model."""
    import torch

    torch.manual_seed(0)
    if name == "resnet50":
        module, x, axes = _resnet(torch), torch.zeros(1, 3, 224, 224), {"x": {0: "N"}, "y": {0: "N"}}
    elif name == "vit12":
        module, x, axes = _transformer(torch, 12, 192, 3, 197), torch.zeros(1, 3, 224, 224), {"x": {0: "N"}}
    else:
        module, x = _transformer(torch, 96, 256, 4, None), torch.zeros(1, 16, dtype=torch.int64)
        axes = {"x": {0: "N", 1: "L"}, "y": {0: "N"}}
    torch.onnx.export(
        module.eval(), (x,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
        dynamic_axes=axes, do_constant_folding=False,
    )  # fmt: skip


def _resnet(torch):
    """ResNet-50 with its BatchNormalization unfolded."""
    nn = torch.nn
    unit = lambda i, o, k, s=1: [nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o)]  # noqa: E731

    class Block(nn.Module):
        def __init__(self, i, width, stride):
            super().__init__()
            o = 4 * width
            self.skip = nn.Sequential(*unit(i, o, 1, stride)) if i != o or stride > 1 else nn.Identity()
            parts = [*unit(i, width, 1), nn.ReLU(), *unit(width, width, 3, stride), nn.ReLU(), *unit(width, o, 1)]
            self.body = nn.Sequential(*parts)

        def forward(self, x):
            return torch.relu(self.body(x) + self.skip(x))

    layers, channels = [*unit(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for i, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for j in range(depth):
            layers.append(Block(channels, width, 2 if i and not j else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def _transformer(torch, layers, width, heads, patches):
    """A transformer written plainly, as most are: heads split by x.shape, LayerNorm and GELU by hand.

    patches: tokens of a picture and one more for the class; None: the input is words.
    """

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
            self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
            self.scales = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(width)) for _ in range(4)])

        def norm(self, x, i):
            x = x - x.mean(-1, keepdim=True)
            return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scales[2 * i] + self.scales[2 * i + 1]

        def forward(self, x):
            rows, length, _ = x.shape
            parts = self.qkv(self.norm(x, 0)).view(rows, length, 3, heads, width // heads)
            q, k, v = (parts[:, :, i].transpose(1, 2) for i in range(3))
            weights = torch.softmax(q @ k.transpose(-1, -2) / (width // heads) ** 0.5, -1)
            x = x + self.out((weights @ v).transpose(1, 2).reshape(rows, length, width))
            h = self.up(self.norm(x, 1))
            return x + self.down(h * 0.5 * (1 + torch.erf(h / 2**0.5)))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if patches:
                self.patch = torch.nn.Conv2d(3, width, 16, 16)
                self.first = torch.nn.Parameter(torch.zeros(1, 1, width))
                self.place = torch.nn.Parameter(torch.zeros(1, patches, width))
            else:
                self.words = torch.nn.Embedding(1000, width)
            self.layers = torch.nn.ModuleList([Layer() for _ in range(layers)])
            self.head = torch.nn.Linear(width, 1000)

        def forward(self, x):
            if patches:
                h = self.patch(x).flatten(2).transpose(1, 2)
                h = torch.cat([self.first.expand(h.shape[0], -1, -1), h], 1) + self.place
            else:
                h = self.words(x)
            for layer in self.layers:
                h = layer(h)
            return self.head(h.mean(1))

    return Model()


def main() -> int:
    """Print a line for each model; exit with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "onnxplain-loading")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also measure `onnxplain compile`")
    parser.add_argument("names", nargs="*", default=list(GOALS))
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make.stem, arguments.make)
        return 0
    arguments.folder.mkdir(exist_ok=True)
    missed = False
    for name in arguments.names:
        path = arguments.folder / f"{name}.onnx"
        if not path.exists():  # in a process of its own: a child's peak begins at its parent's size
            subprocess.run([sys.executable, __file__, "--make", str(path)], check=True)
        found = json.loads(last_line(MEASURE, str(path)))
        if arguments.compile:
            written = str(path.with_suffix(".gradient.onnx"))
            found["compile"] = int(last_line(COMPILE, str(path), written)) / found["weights"]
            found["session"] = int(last_line(SESSION, written)) / found["weights"]
        total = found["load"] + found["normalise"]
        missed |= total > GOALS[name] or found["peak"] > PEAK
        if arguments.json:
            print(json.dumps({"model": name, **found}))
        else:
            print(
                f"{name:<14} {found['nodes']:>5} nodes, {found['weights'] / 1e6:.0f} MB: load {found['load']:.2f} s, "
                f"normalise {found['normalise']:.2f} s of CPU (goal together {GOALS[name]} s), "
                f"peak {found['peak']:.2f} x weights (goal {PEAK})"
            )
            if arguments.compile:
                print(f"    compile: peak {found['compile']:.2f} x, a user's session {found['session']:.2f} x weights")
            print("   ", ", ".join(f"{step} {seconds} s" for step, seconds in found["steps"].items()))
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
