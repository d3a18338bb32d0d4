"""Make the built-in weights with this project's own training.

    python -m tools.pretraining.pretrain formulas OUT [--classes 300 --per-class 100]
    python -m tools.pretraining.pretrain tiny ZIP OUT [--per-class 500]
    python -m tools.pretraining.pretrain grey FOLDER OUT [--fraction 0.2]
    python -m tools.pretraining.pretrain train DATA RUN [--model convnext_zepto_rms] [--stages 32x6 64x3]
    python -m tools.pretraining.pretrain distil DATA RUN --teacher FILE [--stages 96x12 128x4] [--weights PATH]
        [--labels CSV]
    python -m tools.pretraining.pretrain label RUN CSV
    python -m tools.pretraining.pretrain pack RUN

`formulas` generates images by formulas. `tiny` unpacks Tiny ImageNet at 32 px without the unseen classes. `grey` writes
grey copies of some images, so that the weights know X-rays' lack of colour. `train` takes labelled images, `distil` any
folder of images and a teacher (`python -m tools.pretraining.teacher`); with `--labels`, half of the loss of the classes
is against labels. `label` writes them for the images of a run of `distil`: the class of an image's folder, such as
those of Tiny ImageNet, if the teacher knows it, otherwise the teacher's class. Each stage, PIXELSxEPOCHS, starts from
the weights of the one before: most epochs on small images, the last ones on larger. A stage that was interrupted is
resumed, a finished one is left out. `pack` writes the run's weights in 16 bits into the package; their model card,
`convnext_cli/models/builtin/card.toml`, is written by hand.
"""

import argparse
import csv
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from convnext_cli import finetune
from convnext_cli.data.scan import scan_unlabelled
from convnext_cli.models.catalog import load_builtin
from convnext_cli.progress import Notice, Progress
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.events import EpochDone, StepDone
from tools.pretraining.formulas import write_images

VAL_PER_CLASS = 10
BATCH = 96
PEAKS = (2e-3, 1e-3)  # learning rate from random weights, and in later stages
SHOWN = 1_000  # images between two lines of progress
HELD_OUT = frozenset(
    {
        "n01784675", "n02085620", "n02132136", "n02481823", "n02788148", "n02793495", "n02815834", "n02883205",
        "n03042490", "n03201208", "n03393912", "n03444034", "n03804744", "n03837869", "n03930313", "n03937543",
        "n04254777", "n04371430", "n07920052", "n09193705",
    }
)  # fmt: skip
"""Classes of Tiny ImageNet that are left out, as a downstream task (benchmarks/pretrained.py)."""


def draw(out: Path, *, classes: int, per_class: int, size: int, processes: int) -> None:
    """Generate the images of both splits, with the same classes."""
    for split, numbers in (("val", range(VAL_PER_CLASS)), ("train", range(VAL_PER_CLASS, VAL_PER_CLASS + per_class))):
        drawn = write_images(out / split, classes=classes, numbers=numbers, size=size, seed=0, processes=processes)
        for label in drawn:
            print(f"\r{split}: {label + 1} of {classes} classes", end="", flush=True)
        print()


def unpack(archive: Path, out: Path, *, per_class: int) -> None:
    """Unpack `{train,val}/<class>/` of the classes to pretrain on, at most `per_class` images of each folder."""
    folders: Counter[Path] = Counter()
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            path = Path(name)
            if name.endswith("/") or HELD_OUT & set(path.parts):
                continue
            folders[path.parent] += 1
            if folders[path.parent] <= per_class:
                opened.extract(name, out)


def copy_grey(folder: Path, out: Path, *, fraction: float) -> None:
    """Write grey copies of a fraction of the images of a folder, spread evenly."""
    paths = scan_unlabelled(folder).paths
    for number in range(round(fraction * len(paths))):
        path = paths[int(number / fraction)]
        target = (out / path).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / path).convert("L").save(target)


def train(data: Path, run: Path, *, model: str, stages: list[str]) -> None:
    """Train stage by stage and print the accuracies."""
    weights = "none"
    for number, stage in enumerate(stages):
        size, epochs = map(int, stage.split("x"))
        output = run if number + 1 == len(stages) else run.with_name(f"{run.name}-{stage}")
        finished = finetune(
            data,
            model=model,
            output=output,
            weights=weights,
            recipe="specification",
            audit=False,  # every image is new by construction
            group_from="none",
            epochs=epochs,
            batch_size=BATCH,
            lr=PEAKS[weights != "none"],
            min_lr=1e-5 if output == run else 4e-4,  # the next stage goes on from there
            warmup_epochs=0.1 if number else 0.3,
            weight_decay=0.05,
            drop_path=0.0,
            label_smoothing=0.1,
            mixup=0.0,
            cutmix=0.0,
            image_size=size,
            min_crop_area=0.35,
            hflip=0.5,
        )
        assert finished.val is not None
        classes = len(finished.val.per_class)
        print(f"{stage}: top-1 {finished.val.top1:.1%} on {finished.val.images:,} images of {classes} classes")
        weights = str(output)


def label(run: Path, out: Path) -> None:
    """Write `path,label` of the images of a run: the class that a folder of the path is named after, else the run's.

    A class without an image has no row.
    """
    classes = set(RunFolder(run).read_config().label_names)
    with (run / "split.csv").open(newline="") as source, out.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["path", "label"])
        for row in csv.DictReader(source):
            own = classes & set(Path(row["path"]).parts)
            writer.writerow([row["path"], min(own, default=row["label"])])


def distil(
    data: Path,
    run: Path,
    *,
    weights: str,
    stages: list[str],
    batch: int,
    views: int,
    labels: Path | None,
    **options: Any,
) -> None:
    """Distil the teacher stage by stage, on unlabelled images or also on labels; go on where it was interrupted.

    The learning rate is for a batch of `BATCH`, and goes with the square root of the batch.
    """
    for number, stage in enumerate(stages):
        size, epochs = map(int, stage.split("x"))
        output = run if number + 1 == len(stages) else run.with_name(f"{run.name}-{stage}")
        folder = RunFolder(output)
        if folder.is_begun and not folder.is_finished:
            finetune(resume=output, onnx=False, on_event=Printer())
        elif not folder.is_finished:
            kind = {"image_root": str(data), "teacher_weight": 0.5} if labels else {"unlabelled": True}
            finetune(
                labels or data,
                output=output,
                overwrite=True,
                weights=weights,
                recipe="specification",
                audit=False,
                group_from="none",
                val_fraction=0.0,
                test_fraction=0.0,
                **kind,
                epochs=epochs,
                batch_size=batch,
                micro_batch_size=batch,
                lr=PEAKS[weights != "none"] * (batch / BATCH) ** 0.5,
                min_lr=1e-5,
                warmup_epochs=1.0,
                weight_decay=0.05,
                drop_path=0.0,
                label_smoothing=0.0,
                mixup=0.0,
                cutmix=0.0,
                image_size=size,
                min_crop_area=0.3,
                hflip=0.5,
                teacher_views=views,
                teacher_features=3.0,
                save_every=100,
                onnx=False,
                on_event=Printer(),
                **options,
            )
        print(f"{stage}: {output}", flush=True)
        weights = str(output)


class Printer:
    """Prints epochs and notices, and progress at intervals."""

    def __init__(self) -> None:
        self.shown = 0  # images, of the activity that goes on

    def __call__(self, event: object) -> None:
        """Print an event of a training."""
        if isinstance(event, EpochDone):
            print(f"epoch {event.epoch}: loss {event.train_loss:.4f}, {event.seconds:.0f} s", flush=True)
        elif isinstance(event, Notice):
            print(event.text, flush=True)
        elif isinstance(event, Progress):
            if event.done < self.shown or event.done >= self.shown + SHOWN:
                self.shown = event.done
                print(f"{event.activity}: {event.done:,} of {event.total:,}", flush=True)
        elif isinstance(event, StepDone) and event.step % 50 == 0:
            print(f"epoch {event.epoch}, step {event.step} of {event.steps}: loss {event.loss:.4f}", flush=True)


def pack(run: Path) -> None:
    """Write the run's weights into the package."""
    import torch

    from convnext_cli.models.catalog import find_model
    from convnext_cli.models.hub import find_weights
    from convnext_cli.models.weights import read_weights, write_tensors

    own = load_builtin()
    halved = {name: value.to(torch.float16) for name, value in read_weights(run).items()}
    path = find_weights(find_model(own.architecture)[0], own.tag, offline=True)
    write_tensors(halved, path, {"format": "pt"})
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    formulas = commands.add_parser("formulas")
    formulas.add_argument("out", type=Path)
    formulas.add_argument("--classes", type=int, default=300)
    formulas.add_argument("--per-class", type=int, default=100)
    formulas.add_argument("--size", type=int, default=64, help="px")
    formulas.add_argument("--processes", type=int, default=2)
    tiny = commands.add_parser("tiny")
    tiny.add_argument("archive", type=Path)
    tiny.add_argument("out", type=Path)
    tiny.add_argument("--per-class", type=int, default=500)
    grey = commands.add_parser("grey")
    grey.add_argument("folder", type=Path)
    grey.add_argument("out", type=Path)
    grey.add_argument("--fraction", type=float, default=0.2)
    training = commands.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("run", type=Path)
    training.add_argument("--model", default="convnext_zepto_rms")
    training.add_argument("--stages", nargs="+", default=["32x6", "64x3"], metavar="PIXELSxEPOCHS")
    student = commands.add_parser("distil")
    student.add_argument("data", type=Path)
    student.add_argument("run", type=Path)
    student.add_argument("--teacher", required=True)
    student.add_argument("--batch", type=int, default=BATCH)
    student.add_argument("--model", default="convnext_zepto_rms")
    student.add_argument("--weights", default="none", help="to start from: none, builtin, or a path")
    student.add_argument("--stages", nargs="+", default=["96x12", "128x4"], metavar="PIXELSxEPOCHS")
    student.add_argument("--views", type=int, default=3, help="of each image")
    student.add_argument("--labels", type=Path, metavar="CSV")
    student.add_argument("--seed", type=int, default=0)
    labelling = commands.add_parser("label")
    labelling.add_argument("run", type=Path)
    labelling.add_argument("out", type=Path)
    packing = commands.add_parser("pack")
    packing.add_argument("run", type=Path)
    options = vars(parser.parse_args())
    commands_by_name: dict[str, Callable[..., None]] = {
        "formulas": draw, "tiny": unpack, "grey": copy_grey, "train": train, "distil": distil, "label": label,
        "pack": pack,
    }  # fmt: skip
    commands_by_name[options.pop("command")](**options)


if __name__ == "__main__":
    main()
