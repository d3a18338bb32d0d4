"""Compare the built-in weights with random initialisation or others, frozen and fine-tuned, on five data sets.

    python -m benchmarks.pretrained OUT [--seeds 3] [--size 64] [--images 1000] [--sets digits pets]
        [--weights none builtin RUN FILE.onnx] [--only probe]

`benchmarks/datasets.py` has the locations of the data sets. Each seed draws other images (by patient on cxr3; unseen
classes of Tiny ImageNet): 80% train, 20% validation, and as many again for testing. All weights get the same images. An
ONNX file, such as a teacher's, is probed at its own input size, and not fine-tuned. Linear probe: logistic regression
on frozen, standardised features; the validation images choose its regularisation. Fine-tuned: the same settings and
epochs for all. The metric is balanced accuracy on the test images.
OUT/results.json has all runs.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.datasets import SETS, draw_manifest
from convnext_cli import evaluate, finetune
from convnext_cli.data.index import Index
from convnext_cli.inference.onnx_classifier import OnnxClassifier
from convnext_cli.models.catalog import BUILTIN, load_builtin
from convnext_cli.progress import finish

WAYS = ("probe", "tuned")
Record = dict[str, object]
Features = dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SHOWN = 5_000  # training images of a fine-tuning over all epochs, at least


def probe(index: Index, weights: str, size: int, seed: int) -> float:
    """Return the balanced accuracy of a linear probe."""
    compute = compute_onnx_features if weights.endswith(".onnx") else compute_features
    parts = compute(index, weights, size, seed)
    (train, labels), (val, val_labels), (test, test_labels) = (parts[split] for split in ("train", "val", "test"))
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2_000)).fit(train, labels)
        for strength in STRENGTHS
    ]
    best = max(fitted, key=lambda model: balanced_accuracy_score(val_labels, model.predict(val)))
    return float(balanced_accuracy_score(test_labels, best.predict(test)))


def compute_onnx_features(index: Index, weights: str, _size: int, _seed: int) -> Features:
    """Return the features and labels of each split, from an exported file at its own input size."""
    classifier = OnnxClassifier(Path(weights))
    return {
        split: (
            finish(classifier.classify_rows(index, index.rows(split), features=True)).features,
            np.array([index.labels[row] for row in index.rows(split)]),
        )
        for split in ("train", "val", "test")
    }


def compute_features(index: Index, weights: str, size: int, seed: int) -> Features:
    """Return the features and labels of each split, from weights of the built-in architecture."""
    import torch

    from convnext_cli.images.loaders import cut_batches, load_batches
    from convnext_cli.inference.classifier import load_for_eval
    from convnext_cli.models.build import ModelOptions, build_model, read_preprocessing
    from convnext_cli.models.catalog import find_model
    from convnext_cli.models.forward import forward_batches

    torch.manual_seed(seed)
    architecture, tag = find_model(f"{load_builtin().architecture}.{BUILTIN}")
    weights = "auto" if weights == BUILTIN else weights
    model, _ = build_model(architecture, tag, ModelOptions(num_classes=0), weights=weights, offline=True)
    preprocessing = replace(read_preprocessing(model), image_size=size)

    def features(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows = index.rows(split)
        load = load_for_eval(index, preprocessing, cache=True)
        batches = load_batches(cut_batches(rows, 64), load, threads=1)
        parts = forward_batches(model.eval(), batches, preprocessing, torch.device("cpu"))
        return torch.cat([part for _, part in parts]).numpy(), np.array([index.labels[row] for row in rows])

    return {split: features(split) for split in ("train", "val", "test")}


def tune(manifest: Path, index: Index, weights: str, size: int, seed: int, run: Path) -> float:
    """Return the balanced accuracy after fine-tuning."""
    epochs = max(6, round(SHOWN / len(index.rows("train"))))
    finetune(
        manifest,
        model=load_builtin().architecture,
        weights=weights,
        output=run,
        overwrite=True,
        recipe="specification",
        audit=False,
        seed=seed,
        epochs=epochs,
        batch_size=32,
        lr=1e-3,
        warmup_epochs=epochs / 10,
        image_size=size,
        min_crop_area=0.5,
        drop_path=0.0,
    )
    return float(evaluate(run, split="test").metrics.balanced_accuracy)


def measure(
    out: Path, sets: list[str], seeds: int, size: int, images: int, weights: list[str], only: list[str]
) -> Iterator[Record]:
    """Yield a record of each data set, seed and initialisation."""
    for name in sets:
        whole = SETS[name](out)
        for seed in range(seeds):
            manifest = out / f"{name}-{seed}.csv"
            index = draw_manifest(whole, images, seed, manifest)
            for start in weights:
                scores = {}
                if "probe" in only:
                    scores["probe"] = probe(index, start, size, seed)
                if "tuned" in only and not start.endswith(".onnx"):
                    scores["tuned"] = tune(manifest, index, start, size, seed, out / "run")
                yield {
                    "set": name, "seed": seed, "size": size, "start": start, **scores,
                    "train": len(index.rows("train")), "test": len(index.rows("test")), "classes": len(index.classes),
                }  # fmt: skip


def show(results: list[Record], weights: list[str]) -> None:
    """Print mean and standard deviation over the seeds in percent, and the seeds in which the last weights win."""
    names = [Path(start).stem[-16:] for start in weights]
    print(
        f"{'set':<9}{'train':>6}{'test':>6}{'classes':>8}  {'what':<7}{''.join(f'{name:>17}' for name in names)}   wins"
    )
    for name in dict.fromkeys(str(result["set"]) for result in results):
        of_set = [result for result in results if result["set"] == name]
        for what in (what for what in WAYS if what in of_set[0]):
            values = {
                start: 100
                * np.array([result[what] for result in of_set if result["start"] == start and what in result])
                for start in weights
            }
            cells = "".join(f"{_summarise(values[start]):>17}" for start in weights)
            first, last = (values[start] for start in (weights[0], weights[-1]))
            wins = f"{(last > first).sum()} of {len(first)}" if len(first) == len(last) else ""
            row = of_set[0]
            print(f"{name:<9}{row['train']:>6}{row['test']:>6}{row['classes']:>8}  {what:<7}{cells}   {wins}")


def _summarise(values: NDArray[np.float64]) -> str:
    if not len(values):
        return "-"
    return f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else float('nan'):.1f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="px")
    parser.add_argument("--images", type=int, default=1_000, help="to train and choose by; as many again to test")
    parser.add_argument("--weights", nargs="+", default=["none", BUILTIN], help="none, builtin, runs, or an ONNX file")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for result in measure(**vars(options)):
        print(json.dumps(result), flush=True)
        results.append(result)
        (options.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    show(results, options.weights)


if __name__ == "__main__":
    main()
