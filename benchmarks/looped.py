"""What methods that look many times cost beyond their looks: onnxplain, the bare runtime and peers taking turns.

    python benchmarks/looped.py                    # all cases, some minutes on two cores
    python benchmarks/looped.py rise --masks 4000  # one case; DIANNA takes part where it is installed

In each round every contender of a case runs once, one after the other in this process, with a pause between: ratios
compare runs of one round. Reported: the median and the range from the 10th to the 90th percentile of all rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onnxplain.explainer import Explainer
from onnxplain.inputs import Preprocessing, load
from onnxplain.sources import resolve_model
from onnxplain.subject import Subject

MODELS = Path(__file__).resolve().parents[1] / "models"
PAUSE = 0.3  # seconds; idle threads of a runtime spin for some 0.05
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches, of which the bare runtime takes the fastest
Contenders = dict[str, Callable[[], object]]


def model(name: str, sample: str) -> tuple[Subject, dict[str, np.ndarray]]:
    """A model of the repository on the CPU, and one of its samples."""
    resolved = resolve_model(str(MODELS / name))
    subject = Subject.of(resolved.path, provider="cpu", threads=2)
    pictures = Preprocessing.of(resolved.settings)
    files = [MODELS / name / "samples" / sample]
    return subject, load(files, subject.inputs, pictures.of_input, pictures.columns(subject.inputs)).feeds


def bare(subject: Subject, feeds: dict[str, np.ndarray], rows: int) -> Callable[[], None]:
    """`rows` forward passes of the model in the batch that is fastest, and nothing else."""
    (name, x), session = *feeds.items(), subject.session

    def run(count: int, size: int) -> None:
        for start in range(0, count, size):
            session.run({name: np.repeat(x[:1], min(size, count - start), 0)})

    def seconds(size: int) -> float:
        run(2 * size, size)
        return min(timed(lambda: run(max(64, size), size)) / max(64, size) for _ in range(3))

    best = min(SIZES, key=seconds)
    print(f"bare onnxruntime is fastest with batches of {best}")
    return lambda: run(rows, best)


def rise(masks: int) -> tuple[str, Contenders]:
    """RISE against the bare runtime, and DIANNA's with the same number of masks."""
    subject, feeds = model("mobilenet_v2", "chelsea.png")
    explainer = Explainer(subject, "rise", masks=masks)
    contenders: Contenders = {
        "bare onnxruntime": bare(subject, feeds, masks),
        "onnxplain rise": lambda: explainer.explain(feeds, 285),
    }
    if importlib.util.find_spec("dianna") is not None:
        contenders["DIANNA RISE"] = dianna_rise(subject, feeds, masks)
    return f"RISE, {masks} masks, MobileNetV2", contenders


def dianna_rise(subject: Subject, feeds: dict[str, np.ndarray], masks: int) -> Callable[[], object]:
    """DIANNA's, over the same session."""
    from dianna.methods.rise_image import RISEImage  # type: ignore[import-not-found, unused-ignore]

    (name, x), session = *feeds.items(), subject.session
    (output,) = session.outputs[:1]
    found = RISEImage(n_masks=masks, feature_res=7, p_keep=0.5, axis_labels=("batch", "channels", "height", "width"))

    def runner(rows: np.ndarray) -> np.ndarray:
        return session.run({name: rows.astype(np.float32)}, [output])[output]

    return lambda: found.explain(runner, x[0], labels=[285], batch_size=32)


def occlusion() -> tuple[str, Contenders]:
    """Occlusion against as many bare forward passes."""
    subject, feeds = model("mobilenet_v2", "chelsea.png")
    explainer, looks = Explainer(subject, "occlusion", patch=32, stride=8), []
    explainer.explain(feeds, 285, progress=lambda done, total: looks.append(total))
    return f"occlusion, {looks[-1]} windows, MobileNetV2", {
        "bare onnxruntime": bare(subject, feeds, looks[-1]),
        "onnxplain occlusion": lambda: explainer.explain(feeds, 285),
    }


def integrated_gradients() -> tuple[str, Contenders]:
    """Fifty steps against fifty rows of the compiled gradient, in batches of the same size."""
    subject, feeds = model("mobilenet_v2", "chelsea.png")
    explainer, gradient = Explainer(subject, "integrated_gradients", steps=50), Explainer(subject, "gradient")
    ((name, x),) = feeds.items()
    seed = np.zeros((1, 1000), np.float32)
    seed[0, 285] = 1

    def rows() -> None:
        for size in (16, 16, 18):
            gradient.run({name: np.repeat(x, size, 0)}, np.repeat(seed, size, 0))

    return "integrated gradients, 50 steps, MobileNetV2", {
        "50 rows of the compiled gradient": rows,
        "onnxplain integrated_gradients": lambda: explainer.explain(feeds, 285),
    }


def kernel_shap() -> tuple[str, Contenders]:
    """Kernel SHAP, against its own calls of the model."""
    subject, feeds = model("mobilenet_v2", "chelsea.png")
    explainer = Explainer(subject, "kernel_shap", samples=1000)
    spent: list[float] = []
    session = subject.session
    plain = session.run

    def run(*args: object, **more: object) -> object:
        begun = time.perf_counter()
        try:
            return plain(*args, **more)  # type: ignore[arg-type]
        finally:
            spent.append(time.perf_counter() - begun)

    session.run = run  # type: ignore[method-assign, assignment]

    def explain() -> None:
        spent.clear()
        seconds = timed(lambda: explainer.explain(feeds, 285))
        print(f"  kernel_shap: {100 * (seconds / sum(spent) - 1):.1f} % of its {len(spent)} model calls on top")

    return "Kernel SHAP, 1000 coalitions of 49 patches, MobileNetV2", {"onnxplain kernel_shap": explain}


def tree_shap(depth: int = 4, background: int = 100) -> tuple[str, Contenders]:
    """TreeSHAP of 100 trees and 1000 rows against shap's C++."""
    import shap  # type: ignore[import-not-found, unused-ignore]
    from skl2onnx import to_onnx  # type: ignore[import-not-found, unused-ignore]
    from sklearn.datasets import make_regression  # type: ignore[import-not-found, unused-ignore]
    from sklearn.ensemble import GradientBoostingRegressor  # type: ignore[import-not-found, unused-ignore]

    x, y = make_regression(2000, 20, n_informative=12, random_state=0)
    x = x.astype(np.float32)
    fitted = GradientBoostingRegressor(n_estimators=100, max_depth=depth, random_state=0).fit(x, y)
    path = Path("/tmp") / "onnxplain_trees.onnx"
    path.write_bytes(to_onnx(fitted, x[:1]).SerializeToString())
    rows, others = x[:1000], x[1000 : 1000 + background]
    peer = shap.TreeExplainer(fitted, others, feature_perturbation="interventional")
    ours = Explainer(path, "tree_shap", baseline="background", background=others)
    gap = np.abs(ours.explain(rows, 0).relevance - peer.shap_values(rows, check_additivity=False)).max()
    print(f"largest difference from shap: {gap:.2g}")
    return f"TreeSHAP, 100 trees of depth {depth}, 1000 rows, {background} background rows", {
        "shap (C++)": lambda: peer.shap_values(rows, check_additivity=False),
        "onnxplain tree_shap": lambda: ours.explain(rows, 0),
    }


def timed(function: Callable[[], object]) -> float:
    """Seconds it takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def measure(title: str, contenders: Contenders, rounds: int) -> None:
    """Print a table: each contender's time and its ratio to the first of the same round."""
    print(f"\n### {title}\n")
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            time.sleep(PAUSE)
            found[name].append(timed(contender))
    first = next(iter(found.values()))
    print("| contender | s | × the first | 10 % … 90 % |\n| --- | --- | --- | --- |")
    for name, seconds in found.items():
        ratios = [own / other for own, other in zip(seconds, first, strict=True)]
        low, high = np.quantile(ratios, [0.1, 0.9])
        print(
            f"| {name} | {statistics.median(seconds):.3f} | {statistics.median(ratios):.3f} | {low:.3f} … {high:.3f} |"
        )


if __name__ == "__main__":
    cases = {
        "rise": lambda: rise(given.masks), "occlusion": occlusion, "integrated_gradients": integrated_gradients,
        "kernel_shap": kernel_shap, "tree_shap": tree_shap,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*cases, []], default=[])
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for case in given.cases or cases:
        measure(*cases[case](), given.rounds)
