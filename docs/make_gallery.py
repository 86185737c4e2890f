"""Run the commands of docs/gallery.md and take their pictures: `python docs/make_gallery.py [SECTION …]`.

Takes some minutes for all. `tests/test_docs.py` checks that every method is shown and that the page is up to date; the
pictures are looked at by whoever makes them.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from onnxplain.cli import main

HERE = Path(__file__).resolve().parent
PAGE, PICTURES = HERE / "gallery.md", HERE / "images" / "gallery"
WIDTH = 1800  # pixels at most
INTRODUCTION = """# Gallery

Every method on real models, each picture by the command above it, run in the repository's root (`--out` says where).
Written by `python docs/make_gallery.py`. Red speaks for the target, blue against it; maps of methods that have no sign
go from dark to bright. Below a map stand the score that is explained and ΣR, the sum of relevance, where it means
anything.
"""
CAT = "onnxplain run mobilenet_v2 models/mobilenet_v2/samples/chelsea.png"
COFFEE = "onnxplain run mobilenet_v2 models/mobilenet_v2/samples/coffee.png"


@dataclass(frozen=True)
class Section:
    """name: of the picture. command: words of `onnxplain`, methods apart. says: what one sees."""

    name: str
    title: str
    command: str
    methods: tuple[str, ...]
    says: str

    @property
    def words(self) -> list[str]:
        """Of the command line, behind `onnxplain`."""
        return [*shlex.split(self.command)[1:], *(word for name in self.methods for word in ("--method", name))]

    def text(self) -> str:
        """Its part of the page."""
        command = " ".join([self.command, *(f"--method {name}" for name in self.methods)])
        lines, line = [], ""
        for word in command.replace(" --", "\n--").split("\n"):
            if line and len(line) + len(word) > 108:
                lines, line = [*lines, line], "   "
            line = f"{line} {word}".strip() if not line.strip() else f"{line} {word}"
        shown = " \\\n".join([*lines, line])
        picture = f"![{self.title}](images/gallery/{self.name}.jpg)"
        return f"## {self.title}\n\n{self.says}\n\n```sh\n{shown}\n```\n\n{picture}\n"


DIGIT = "models/digits_vit/samples/digit_3.png"
SECTIONS = (
    Section(
        "gradients",
        "Gradients",
        CAT,
        ("gradient", "saliency", "sensitivity", "gradient_x_input", "deconvnet", "guided_backprop"),
        "One backward pass. The gradient of a deep net is noise with a trace of the object; its square and its "
        "absolute value show where, not for or against. Deconvnet and guided backprop drop what is negative at every "
        "Relu: sharp edges that hardly depend on the target.",
    ),
    Section(
        "relevance",
        "Relevance propagation",
        CAT,
        ("lrp", "lrp-epsilon_gamma_box", "lrp-epsilon", "clrp1", "clrp2", "deep_lift", "deep_lift_reveal_cancel"),
        "One backward pass with a rule for each layer: eyes, nose and whiskers. Epsilon alone is gradient times input "
        "in disguise, and as noisy; so is DeepLIFT, which compares with a grey picture. Contrastive LRP keeps what "
        "speaks for this class more than for the others.",
    ),
    Section(
        "paths",
        "Paths and noise",
        CAT,
        (
            "integrated_gradients",
            "blurred_integrated_gradients",
            "guided_integrated_gradients",
            "expected_gradients",
            "smooth_grad",
            "smooth_grad-lrp",
        ),
        "The gradient, or another base, at many points between a baseline and the picture, or around it.",
    ),
    Section(
        "maps",
        "Class activation maps",
        COFFEE,
        ("cam", "grad_cam", "grad_cam_plus_plus", "hires_cam", "x_grad_cam", "layer_cam"),
        "The last feature map, 7 x 7, weighted by what it does for the target: all of them in one graph.",
    ),
    Section(
        "more_maps",
        "More class activation maps",
        f"{COFFEE} --box --box-threshold 0.5",
        ("eigen_cam", "eigen_grad_cam", "score_cam", "ablation_cam", "full_grad", "guided_grad_cam", "guided_cam"),
        "Eigen-CAM knows no class. Score- and Ablation-CAM look at the model for each of the 1280 channels; "
        "Ablation-CAM only at the layers above the map. --box draws the localisation box, "
        "here round half of the maximum and more.",
    ),
    Section(
        "layers",
        "Layers inside",
        "onnxplain run digits_cnn models/digits_cnn/samples/digit_3.png --layer /Relu_1_output_0",
        ("layer_gradient", "integrated_gradients", "conductance", "internal_influence", "feature_ablation"),
        "What is attributed may be any tensor; here a feature map of the third layer, summed over its channels.",
    ),
    Section(
        "perturbation",
        "Perturbation",
        COFFEE,
        ("occlusion", "feature_ablation", "rise", "lime", "kernel_shap", "shapley_sampling"),
        "Parts of the picture are taken away; only the model's answers count.",
    ),
    Section(
        "masks",
        "Learned masks",
        COFFEE,
        ("meaningful_perturbation", "extremal_perturbation"),
        "A mask is found by gradient descent: the smallest that takes the score away, and the areas that keep most.",
    ),
    Section(
        "background",
        "Against a data set",
        "onnxplain run digits_cnn models/digits_cnn/samples/digit_3.png --option baseline=background "
        "--background models/digits_cnn/samples/ten_digits.npz",
        ("integrated_gradients", "expected_gradients", "deep_lift_shap", "shapley_sampling", "prediction_difference"),
        "What makes this digit differ from ten others.",
    ),
    Section(
        "vit",
        "A vision transformer",
        f"onnxplain run digits_vit {DIGIT} --target predicted --target '3 vs 8'",
        ("lrp", "integrated_gradients", "grad_cam", "feature_ablation", "shapley_sampling"),
        "Maps of its last block are drawn on the grid of patches that the model cuts the picture into. The second row "
        "asks why a three and no eight.",
    ),
    Section(
        "gru",
        "A recurrent network",
        "onnxplain run digits_gru models/digits_gru/samples/digit_7.png",
        ("gradient_x_input", "integrated_gradients", "smooth_grad", "occlusion", "shapley_sampling"),
        "It reads the digit row by row; what is perturbed is a row, a step in time.",
    ),
    Section(
        "flowers",
        "A table",
        "onnxplain run iris_mlp models/iris_mlp/samples/flowers.csv",
        ("gradient_x_input", "exact_shapley", "kernel_shap", "lime", "counterfactual"),
        "Six flowers, four measurements.",
    ),
    Section(
        "trees",
        "Trees",
        "onnxplain run diabetes_gbr models/diabetes_gbr/samples/patients.csv --option baseline=background",
        ("tree_shap", "exact_shapley", "kernel_shap", "feature_ablation"),
        "TreeSHAP reads the trees; the others know the model's answers only. Exact Shapley values are the same, and "
        "with ten columns Kernel SHAP sees all coalitions, so its are too.",
    ),
    Section(
        "rules",
        "Rules",
        "onnxplain run bc_randomforest models/bc_randomforest/samples/cells.csv",
        ("anchors", "growing_spheres"),
        "A rule that holds the decision, and the nearest row that is decided otherwise.",
    ),
)


def page() -> str:
    """docs/gallery.md."""
    return INTRODUCTION + "\n" + "\n".join(section.text() for section in SECTIONS)


def draw(section: Section) -> None:
    """Run a section's command and keep its grid."""
    with tempfile.TemporaryDirectory() as folder:
        if code := main([*section.words, "--out", folder]):
            raise SystemExit(f"{section.name}: exit code {code}")
        picture = Image.open(Path(folder) / "grid.png").convert("RGB")
        if picture.width > WIDTH:
            picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
        PICTURES.mkdir(parents=True, exist_ok=True)
        picture.save(PICTURES / f"{section.name}.jpg", quality=80)


if __name__ == "__main__":
    for section in SECTIONS:
        if len(sys.argv) == 1 or section.name in sys.argv[1:]:
            print(section.name, flush=True)
            draw(section)
    PAGE.write_text(page(), encoding="utf-8")
