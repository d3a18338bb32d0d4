"""Comparison of OOD scores over pairs of data sets.

    python -m benchmarks.novelty OUT [--epochs 2] [--sizes]

A small model is fine-tuned on each training set from the weights in the package (64 px). Every score is
fitted on up to 2,000 training images; its threshold is set so that 5% of the validation images lie above it, as in
`convnext`. Printed for each pair: ROC AUC (own test images against the OOD set), and the percentage of OOD images
above the threshold. `--sizes` prints instead how the ROC AUC of the score in use depends on the number of training
images of a class that it is fitted on. CONVNEXT_TEST_DATA names the data sets (see `datasets.py`).
"""

import argparse
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.datasets import find_digits, find_unseen, shared
from convnext_cli import finetune
from convnext_cli.data.inputs import find_images
from convnext_cli.data.scan import scan_folder
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.novelty import choose_novelty_threshold, fit_novelty, normalise
from convnext_cli.runs.folder import RunFolder

Floats = NDArray[Any]
Score = Callable[["Views", "Views"], Floats]
MAX_IMAGES = 2000
NEIGHBOUR = 10
SIZES = (25, 50, 100, 200, 400, 1000)  # training images of a class
PAIRS = (
    ("pets", "cxr3"), ("pets", "photos"), ("pets", "digits"), ("pets", "noise"),
    ("cxr3", "pets"), ("cxr3", "ultrasound"), ("cxr3", "digits"), ("cxr3", "noise"),
    ("unseen", "cxr3"), ("unseen", "photos"), ("unseen", "digits"),
    ("digits", "pets"), ("digits", "cxr3"), ("digits", "noise"),
)  # fmt: skip


class Views:
    """A model's outputs on images: pooled features of each stage, (N, C_i); those before the classifier; logits."""

    def __init__(self, classifier: TorchClassifier, load: Callable[[int], NDArray[np.uint8]], count: int) -> None:
        model: Any = classifier.model
        stages: list[list[torch.Tensor]] = [[] for _ in model.stages]
        hooks = [
            stage.register_forward_hook(lambda _m, _i, out, at=at: stages[at].append(out.mean((2, 3)).float().cpu()))
            for at, stage in enumerate(model.stages)
        ]
        parts = list(classifier.classify_batches(range(count), load, features=True))
        for hook in hooks:
            hook.remove()
        self.stages = [torch.cat(part).numpy().astype(np.float64) for part in stages]
        self.features = np.concatenate([part.features for part in parts]).astype(np.float64)
        self.statistics = np.concatenate([part.statistics for part in parts])
        self.logits = np.concatenate([part.logits for part in parts]).astype(np.float64)


def knn(bank: Floats, features: Floats) -> Floats:
    """Return the Euclidean distance to the tenth nearest row of the bank."""
    squares = (features**2).sum(1)[:, None] + (bank**2).sum(1)[None] - 2 * features @ bank.T
    kth: Floats = np.sqrt(np.maximum(np.partition(squares, NEIGHBOUR - 1, axis=1)[:, NEIGHBOUR - 1], 0))
    return kth


def mahalanobis(bank: Floats, features: Floats) -> Floats:
    """Return the Mahalanobis distance to the mean, with Ledoit-Wolf shrinkage."""
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(bank)
    distance: Floats = np.sqrt(np.maximum(fitted.mahalanobis(features), 0))
    return distance


def standardise(bank: Floats, features: Floats) -> tuple[Floats, Floats]:
    """Return both, scaled to the bank's mean 0 and standard deviation 1."""
    mean, std = bank.mean(0), bank.std(0) + 1e-6
    return (bank - mean) / std, (features - mean) / std


def score_stages(kind: Callable[[Floats, Floats], Floats], prepare: str, pool: str) -> Score:
    """Return a score that pools the distances of every stage's features, each scaled by those within the bank."""

    def score(bank: Views, views: Views) -> Floats:
        columns = []
        sets = [*zip(bank.stages, views.stages, strict=True), (bank.features, views.features)]
        for raw in sets:
            own: Floats = raw[0]
            other: Floats = raw[1]
            if prepare == "normalise":
                own, other = normalise(raw[0]), normalise(raw[1])
            elif prepare == "standardise":
                own, other = standardise(*raw)
            half = len(own) // 2
            scale = kind(own[:half], own[half:])  # distances within the bank
            low, high = np.quantile(scale, [0.5, 0.95])
            columns.append((kind(own, other) - low) / (high - low + 1e-12))
        table: Floats = np.stack(columns)
        pooled: Floats = table.max(0) if pool == "max" else table.mean(0)
        return pooled

    return score


def energy(_bank: Views, views: Views) -> Floats:
    """Return the negative log-sum-exp of the logits (Liu et al. 2020)."""
    top = views.logits.max(1, keepdims=True)
    value: Floats = -(top[:, 0] + np.log(np.exp(views.logits - top).sum(1)))
    return value


def typicality(bank: Views, views: Views) -> Floats:
    """Return the OOD score of `convnext`."""
    return fit_novelty(bank.features, bank.statistics).score(views.features, views.statistics)


SCORES: dict[str, Score] = {
    "energy": energy,
    "max softmax": lambda _bank, views: -np.exp(log_softmax(views.logits)).max(1),
    "kNN cosine, last": lambda bank, views: knn(normalise(bank.features), normalise(views.features)),
    "kNN Euclidean, last": lambda bank, views: knn(bank.features, views.features),
    "Mahalanobis, last": lambda bank, views: mahalanobis(bank.features, views.features),
    "kNN cosine, stages, max": score_stages(knn, "normalise", "max"),
    "kNN Euclidean, stages, max": score_stages(knn, "", "max"),
    "kNN standardised, stages, mean": score_stages(knn, "standardise", "mean"),
    "Mahalanobis, stages, max": score_stages(mahalanobis, "", "max"),
    "Mahalanobis, pixel statistics": lambda bank, views: mahalanobis(bank.statistics, views.statistics),
    "typicality (convnext)": typicality,
}


def find_ood_sets(out: Path) -> dict[str, list[Path]]:
    """Return the images of each OOD set, at most 500."""
    folder = out / "photos"
    if not folder.is_dir():
        with zipfile.ZipFile(shared() / "photos160.zip") as archive:
            for name in archive.namelist():
                kind, _, file = name.partition("/")
                number = int(file[:5]) if file[:5].isdigit() else 0
                subset = "photos" if kind == "open" else "ultrasound" if 1451 <= number <= 1510 else ""
                if subset and number:
                    target = folder / subset / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
    noise = out / "noise"
    if not noise.is_dir():
        from PIL import Image

        random = np.random.default_rng(0)
        noise.mkdir(parents=True)
        for i in range(200):
            side = int(random.choice([4, 8, 16, 64]))
            Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).resize((96, 96)).save(
                noise / f"{i}.png"
            )
    sets = {"cxr3": shared() / "cxr3" / "test", "pets": shared() / "pets", "noise": noise, "digits": out / "digits"}
    sets |= {name: folder / name for name in ("photos", "ultrasound")}
    random = np.random.default_rng(0)
    paths_by_set = {name: find_images(path, Counter())[0] for name, path in sets.items()}
    return {name: [paths[i] for i in random.permutation(len(paths))[:500]] for name, paths in paths_by_set.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The outputs of a model on images of its own set, and on the OOD sets that it is compared with."""

    name: str
    train: Views
    labels: NDArray[np.int64]
    """(N,) classes of the images of `train`."""
    val: Views
    test: Views
    ood_sets: dict[str, Views]


def train_all(out: Path, epochs: int) -> Iterator[Trained]:
    """Fine-tune a model on each training set where OUT has none, and yield its outputs."""
    indexes = {
        "pets": scan_folder(shared() / "pets"), "cxr3": scan_folder(shared() / "cxr3"), "digits": find_digits(out),
        "unseen": find_unseen(out),
    }  # fmt: skip
    ood_sets = find_ood_sets(out)
    for name, index in indexes.items():
        run = RunFolder(out / f"run-{name}")
        if not run.is_finished:
            finetune(
                index.root, output=run.path, weights="builtin", epochs=epochs, image_size=64, resplit=True, onnx=False,
                overwrite=True, audit=False, val_fraction=0.15, test_fraction=0.15,
            )  # fmt: skip
        classifier, split, random = TorchClassifier(run.path), run.read_split(), np.random.default_rng(0)
        rows = {
            part: random.permutation(split.rows(part))[:most]
            for part, most in (("train", MAX_IMAGES), ("val", 500), ("test", 500))
        }
        own = {
            part: view(classifier, [split.root / split.paths[row] for row in chosen]) for part, chosen in rows.items()
        }
        others = {other: view(classifier, ood_sets[other]) for mine, other in PAIRS if mine == name}
        yield Trained(name=name, labels=np.array(split.labels)[rows["train"]], ood_sets=others, **own)


def view(classifier: TorchClassifier, paths: list[Path]) -> Views:
    """Return a model's outputs on images."""
    from convnext_cli.images.decode import decode_image
    from convnext_cli.images.transforms import transform_for_eval

    def load(at: int) -> NDArray[np.uint8]:
        return transform_for_eval(decode_image(paths[at]), classifier.preprocessing)

    return Views(classifier, load, len(paths))


def measure_area(known: Floats, unknown: Floats) -> float:
    """Return the ROC AUC of an OOD score: own images against those of another set."""
    truth = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    return float(roc_auc_score(truth, np.r_[known, unknown]))


def compare_sizes(out: Path, epochs: int) -> None:
    """Print the ROC AUC by the number of training images of a class that the score in use is fitted on."""
    print("images of a class" + "".join(f"{size:>7}" for size in SIZES))
    areas: list[list[float]] = []
    for trained in train_all(out, epochs):
        for other, unlike in trained.ood_sets.items():
            areas.append([])
            for size in SIZES:
                rows = np.concatenate([np.flatnonzero(trained.labels == k)[:size] for k in set(trained.labels)])
                fitted = fit_novelty(trained.train.features[rows], trained.train.statistics[rows])
                known, unknown = (fitted.score(views.features, views.statistics) for views in (trained.test, unlike))
                areas[-1].append(measure_area(known, unknown))
            print(f"{f'{trained.name}, {other}':17}" + "".join(f"{100 * area:>7.1f}" for area in areas[-1]))
    for title, values in (("worst", np.min(areas, axis=0)), ("mean", np.mean(areas, axis=0))):
        print(f"{title:17}" + "".join(f"{100 * area:>7.1f}" for area in values))


def compare_scores(out: Path, epochs: int) -> None:
    """Print the tables of all scores."""
    areas: dict[str, list[float]] = {name: [] for name in SCORES}
    flagged: dict[str, list[float]] = {name: [] for name in SCORES}
    own_flagged: dict[str, list[float]] = {name: [] for name in SCORES}
    done: list[str] = []
    for trained in train_all(out, epochs):
        for other, unlike in trained.ood_sets.items():
            done.append(f"{trained.name}/{other}")
            for title, score in SCORES.items():
                threshold = choose_novelty_threshold(score(trained.train, trained.val), 0.05)
                known, unknown = score(trained.train, trained.test), score(trained.train, unlike)
                areas[title].append(measure_area(known, unknown))
                flagged[title].append(float((unknown > threshold).mean()))
                own_flagged[title].append(float((known > threshold).mean()))
    for heading, table in (("ROC AUC %", areas), ("flagged of the OOD set %", flagged), ("own test %", own_flagged)):
        print(f"\n{heading}\n{'':34}" + " ".join(f"{pair[:12]:>12}" for pair in done) + f" {'worst':>6} {'mean':>6}")
        for title, values in table.items():
            worst = max(values) if heading.startswith("own") else min(values)
            cells = " ".join(f"{100 * value:>12.1f}" for value in values)
            print(f"{title:34}{cells} {100 * worst:>6.1f} {100 * np.mean(values):>6.1f}")


def main() -> None:
    """Print the tables that the command asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--sizes", action="store_true", help="print how the number of training images matters")
    options = parser.parse_args()
    (compare_sizes if options.sizes else compare_scores)(options.out, options.epochs)


if __name__ == "__main__":
    main()
