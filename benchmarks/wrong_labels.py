"""Wrong labels that a cross-validation finds.

    python -m benchmarks.wrong_labels OUT [IMAGES]

In each data set, 5% of the labels are replaced by another class at random. `finetune --folds 5` trains a small model
from the weights in the package (64 px), and `eval --split val` writes `predictions.csv`, whose first rows are the most
confident predictions that contradict the label. Printed for each data set: how many of the first rows, as many as
there are wrong labels, have one; and how many of the wrong labels are among all contradictions. CONVNEXT_TEST_DATA
names the folder with cxr3, whose own labels may be wrong too.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from benchmarks.datasets import find_digits, find_fashion, shared
from convnext_cli import cross_validate, evaluate, write_report
from convnext_cli.data.groups import group_index
from convnext_cli.data.index import Index
from convnext_cli.data.scan import scan_folder

FRACTION = 0.05
FOLDS, EPOCHS = 5, 8


def write_table(path: Path, index: Index, images: int) -> set[str]:
    """Write a table of some images with wrong labels; return the files that have one."""
    random = np.random.default_rng(0)
    rows = random.permutation(len(index))[:images]
    wrong = set(random.permutation(rows)[: round(FRACTION * len(rows))])
    files = set()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "group"])
        for row in sorted(rows):
            name, label = (index.root / index.paths[row]).absolute().as_posix(), index.labels[row]
            if row in wrong:
                label = (label + int(random.integers(1, len(index.classes)))) % len(index.classes)
                files.add(name)
            table.writerow([name, index.classes[label], index.groups[row] if index.groups else row])
    return files


def main(out: Path, images: int) -> None:
    """Print a row for each data set."""
    sets = {
        "digits": find_digits(out),
        "fashion": find_fashion(out),
        "cxr3": group_index(scan_folder(shared() / "cxr3"), "auto")[0],
    }
    print("set      images  wrong labels  in as many first rows  contradictions  wrong labels among these")
    for name, index in sets.items():
        table, run = out / f"{name}.csv", out / f"{name}-folds"
        wrong = write_table(table, index, images)
        cross_validate(
            table, folds=FOLDS, output=run, model="convnext_zepto_rms", weights="builtin", image_size=64, epochs=EPOCHS,
            test_fraction=0.0, onnx=False, overwrite=True,
        )  # fmt: skip
        evaluation = evaluate(run, split="val")
        write_report(evaluation)
        with (run / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        root = evaluation.test_set.index.root
        is_wrong = [(root / row["path"]).as_posix() in wrong for row in rows]
        contradictions = sum(row["class"] != row["label"] for row in rows)
        in_first, in_contradictions = sum(is_wrong[: len(wrong)]), sum(is_wrong[:contradictions])
        counts = f"{len(wrong):12}  {in_first:21}  {contradictions:14}  {in_contradictions:24}"
        print(f"{name:8} {len(rows):6}  {counts}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
