"""Compare recipes on real data sets with equal budgets and several seeds.

    python -m benchmarks.recipes.measure OUT [--variants FILE] [--half report] [--seeds 0 1 2] [--sets cxr3 pets]
        [--images 700] [--shown 4000] [--cut VIRUS] [--model convnext_zepto_rms] [--weights builtin]

A variant is a recipe with changed settings (`variants.toml`). For each seed and data set, all variants get the same
images (by patient on cxr3), the same weights, and the same number of training images over all epochs, times the
variant's `budget`. 80% of the images train, 20% choose the best epoch, and as many again test. Variants were chosen on
one half of each data set (`--half choose`). The table is from the other half, with other images and patients.

OUT/results.json has all runs. A repeated command continues where it stopped. `draw.py` prints the table.
"""

import argparse
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets import SETS, draw_manifest
from benchmarks.recipes.peers import train_with_fastai, train_with_timm, train_with_transformers
from benchmarks.recipes.plain import train_plainly
from convnext_cli import evaluate, finetune
from convnext_cli.data.index import Index
from convnext_cli.data.manifest import read_manifest
from convnext_cli.data.tables.table import read_table
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import Intervals, compute_intervals
from convnext_cli.metrics.summary import MetricSet
from convnext_cli.models.catalog import BUILTIN, load_builtin
from convnext_cli.recipes.settings import DEFAULT_RECIPE
from convnext_cli.tasks.registry import SINGLE

SIZES = {"cxr3": 64, "pets": 64, "unseen": 32, "fashion": 32, "digits": 32}  # px; the last three are no larger
DRAWN = {"wide": 96, "tall": 96}  # px, for `framing.toml`: large enough for a rectangle of the same area
RARE = 0.05
WHOLE = {"pets"}  # too few to halve: nothing is chosen on it
TRAINERS: dict[str, Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]] = {
    "plain": train_plainly, "fastai": train_with_fastai, "timm": train_with_timm,
    "transformers": train_with_transformers,
}  # fmt: skip
VARIANTS = Path(__file__).with_name("variants.toml")


def measure(
    out: Path,
    variant: dict[str, Any],
    name: str,
    seed: int,
    *,
    images: int,
    half: str,
    shown: int,
    cut: str | None,
    model: str,
    weights: str,
) -> dict[str, Any]:
    """Fine-tune a variant on one draw of a data set and return its metrics."""
    weights = variant.get("weights", weights)
    out = out.absolute()
    manifest = out / f"{name}-{half}-{seed}.csv"
    index = draw_manifest(SETS[name](out), images, seed, manifest, half=None if name in WHOLE else half)
    train = len(index.rows("train"))
    if cut is not None:
        index = cut_class(index, cut, manifest, seed)
    settings = {"image_size": (SIZES | DRAWN)[name], "seed": seed} | variant.get("settings", {})
    epochs = settings.setdefault("epochs", max(1, round(shown * variant.get("budget", 1) / train)))
    began, busy = perf_counter(), measure_processor_time()
    if trainer := variant.get("trainer"):
        options = variant.get("options", {})
        logits, labels = TRAINERS[trainer](index, model, weights, epochs=epochs, size=SIZES[name], seed=seed, **options)
        found: MetricSet = SINGLE.compute_metrics(logits, labels, index.classes)
        groups = index.list_groups(index.rows("test"))
        intervals = compute_intervals(ClassCalculator(logits, labels), groups)
    else:
        recipe, augment = variant.get("recipe", DEFAULT_RECIPE), variant.get("augment")
        options = {"model": model, "weights": weights, "recipe": recipe, "augment": augment} | settings
        found, intervals = tune(manifest, options, out / "run")
    return {
        "set": name, "seed": seed, "half": half, "train": train, "test": found.images, "classes": len(index.classes),
        "epochs": epochs, "balanced_accuracy": found.balanced_accuracy, "top1": found.top1,
        "interval": astuple(interval) if (interval := intervals.overall["balanced_accuracy"]) else None,
        "log_loss": found.log_loss, "recall": {each.name: each.recall for each in found.per_class},
        "roc_auc": {each.name: each.roc_auc for each in found.per_class},
        "seconds": round(perf_counter() - began, 1), "processor_seconds": round(measure_processor_time() - busy, 1),
    }  # fmt: skip


def measure_processor_time() -> float:
    """Return the processor time of this process and of those that it started and that have ended, in seconds."""
    return sum(os.times()[:4])


def tune(manifest: Path, options: dict[str, Any], run: Path) -> tuple[MetricSet, Intervals]:
    """Fine-tune, and return the metrics of the test images with their intervals."""
    finetune(
        manifest,
        output=run,
        overwrite=True,
        audit=False,
        autotune=False,
        onnx=False,
        **options,
    )
    tested = evaluate(run, split="test")
    return tested.metrics, tested.intervals


def cut_class(index: Index, name: str, manifest: Path, seed: int) -> Index:
    """Keep the fraction `RARE` of a class's train and validation images, by whole groups, in the manifest."""
    label = index.classes.index(name)
    groups = index.groups or index.paths
    mine = [row for row in range(len(index)) if index.labels[row] == label and index.splits[row] != "test"]
    names = sorted({groups[row] for row in mine})
    np.random.default_rng(seed).shuffle(names)
    left: set[str] = set()
    for group in names:
        if sum(groups[row] in left for row in mine) < RARE * len(mine):
            left.add(group)
    gone = {row for row in mine if groups[row] not in left}
    lines = manifest.read_text(encoding="utf-8").splitlines()
    lost = {f'"{index.root / index.paths[row]}"' for row in gone}
    manifest.write_text("\n".join(line for line in lines if line.split(",")[0] not in lost) + "\n", encoding="utf-8")
    return read_manifest(read_table(manifest))


def main() -> None:
    """Measure the missing runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", type=Path, default=VARIANTS)
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--sets", nargs="+", choices=[*SIZES, *DRAWN], default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=700, help="to train and choose by; as many again to test")
    parser.add_argument("--shown", type=int, default=4_000, help="training images shown")
    parser.add_argument("--cut", help="a class that is left a twentieth of its training images")
    parser.add_argument("--model", default=load_builtin().architecture)
    parser.add_argument("--weights", default=BUILTIN, help="to start from: builtin, auto, or a run")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    same = {key: getattr(options, key) for key in ("images", "half", "shown", "cut", "model", "weights")}
    variants = tomllib.loads(options.variants.read_text(encoding="utf-8"))
    path = options.out / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(result["variant"], result["set"], result["seed"], result["half"]) for result in results}
    for seed in options.seeds:
        for name in options.sets:
            if options.half == "choose" and name in WHOLE:
                continue
            for title, variant in variants.items():
                if (title, name, seed, options.half) in done or name not in variant.get("sets", SETS):
                    continue
                result = {"variant": title} | measure(options.out, variant, name, seed, **same)
                results.append(result)
                print(json.dumps(result), flush=True)
                path.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
