"""Does contrastive LRP tell two objects of one picture apart?

    python benchmarks/clrp.py model.onnx picture.png --object 243=78,15,166,148 --object 282=46,120,198,223

An object is a class and its box, left, top, right, bottom in pixels of the picture. For each method: the correlation of
the two classes' maps (1: the method does not look at the class), and for each class the share of its positive relevance
in its own box minus that in the other's (1: all in the right box, -1: all in the wrong one; 0: no difference). Where
the boxes overlap, both shares count, and cancel.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from onnxplain import Explainer
from onnxplain.errors import OnnxplainError
from onnxplain.subject import Subject

Recipe = tuple[str, str | None, str | None]  # method, composite, form
RECIPES: list[Recipe] = [
    ("lrp", "clrp", None),
    *((method, None, form) for method, form in itertools.product(("clrp1", "clrp2"), ("paper", "code"))),
]
IMAGENET = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Object(NamedTuple):
    """A class index and its box (left, top, right, bottom) in pixels of the picture."""

    index: int
    box: tuple[float, float, float, float]

    @classmethod
    def parse(cls, text: str) -> Object:
        """`243=78,15,166,148`."""
        index, _, box = text.partition("=")
        left, top, right, bottom = map(float, box.split(","))
        return cls(int(index), (left, top, right, bottom))

    def mask(self, height: int, width: int, picture: tuple[int, int]) -> np.ndarray:
        """Bool (height, width): the pixels of a map whose centres lie in the box. picture: its (width, height)."""
        x = (np.arange(width) + 0.5) * picture[0] / width
        y = (np.arange(height) + 0.5) * picture[1] / height
        left, top, right, bottom = self.box
        return ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))


def prepared(path: Path, side: int, channels_last: bool, raw: bool) -> tuple[np.ndarray, tuple, tuple[int, int]]:
    """The picture as the model takes it (1, …), its bounds per channel, and its size in the file.

    The whole picture is resized, so that boxes keep their meaning. raw: 0 to 255 as they are; else ImageNet's
    normalisation.
    """
    image = Image.open(path).convert("RGB")
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float32)
    low, high = np.zeros(3, np.float32), np.full(3, 255, np.float32)
    if not raw:
        mean, std = np.array(IMAGENET["mean"], np.float32), np.array(IMAGENET["std"], np.float32)
        pixels, low, high = ((v * np.float32(IMAGENET["scale"]) - mean) / std for v in (pixels, low, high))
    x = pixels if channels_last else pixels.transpose(2, 0, 1)
    return x[None], ([float(v) for v in low], [float(v) for v in high]), image.size


def measured(maps: list[np.ndarray], objects: list[Object], picture: tuple[int, int]) -> tuple[float, list[float]]:
    """Correlation of the two maps (H, W), and for each class its share in the right box minus that in the wrong one."""
    correlation = float(np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1])
    shares = []
    for relevance, right, wrong in ((maps[0], *objects), (maps[1], *objects[::-1])):
        positive = np.maximum(relevance, 0)
        inside = [float(positive[o.mask(*positive.shape, picture)].sum() / positive.sum()) for o in (right, wrong)]
        shares.append(inside[0] - inside[1])
    return correlation, shares


def main() -> None:
    """Print a table, one row a method."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument(
        "--object", action="append", type=Object.parse, required=True, help="CLASS=LEFT,TOP,RIGHT,BOTTOM"
    )
    parser.add_argument("--raw", action="store_true", help="pixels from 0 to 255, not ImageNet's normalisation")
    parser.add_argument("--explain", default="", help="the tensor to explain, if not the model's own choice")
    arguments = parser.parse_args()
    if len(arguments.object) != 2:
        parser.error("two objects are compared: give --object twice.")
    subject = Subject.of(arguments.model, provider="cpu")
    shape = subject.inputs[0].shape
    channels_last = shape[-1] == 3
    side = int(shape[1] if channels_last else shape[2])
    x, bounds, picture = prepared(arguments.picture, side, channels_last, arguments.raw)
    print("| method | form | correlation | right - wrong, first | right - wrong, second |")
    print("| --- | --- | ---: | ---: | ---: |")
    for method, composite, form in RECIPES:
        title = f"{method} {composite}" if composite else method
        try:
            explainer = Explainer(subject, method, composite=composite, form=form, bounds=bounds)
            maps = []
            for thing in arguments.object:
                relevance = explainer.explain(x, thing.index).relevance[0]
                maps.append(relevance.sum(-1 if channels_last else 0))
        except OnnxplainError as error:
            print(f"| {title} | {form or ''} | {error} | | |")
            continue
        correlation, (first, second) = measured(maps, arguments.object, picture)
        print(f"| {title} | {form or ''} | {correlation:+.3f} | {first:+.3f} | {second:+.3f} |", flush=True)


if __name__ == "__main__":
    main()
