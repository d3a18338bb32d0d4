"""Pretrains a small ConvNeXt from random weights, with this project's own `finetune`.

    python -m tools.pretraining.pretrain images OUT [--classes 300 --per-class 300 --size 64]
    python -m tools.pretraining.pretrain train DATA RUN [--model convnext_atto --epochs 12 --size 64]

`images` draws the formulas' classes into OUT/{train,val}; any other folder of images can be trained on as well. The
settings are those of a short training from scratch: a rate of 2e-3 at batch 128, no mixing, large random crops.
"""

import argparse
from pathlib import Path

from convnext_cli import finetune
from tools.pretraining.formulas import write_images

VAL_PER_CLASS = 10


def draw(out: Path, *, classes: int, per_class: int, size: int, processes: int) -> None:
    """Draws the images of both splits; they share classes and no image."""
    for split, numbers in (("val", range(VAL_PER_CLASS)), ("train", range(VAL_PER_CLASS, VAL_PER_CLASS + per_class))):
        drawn = write_images(out / split, classes=classes, numbers=numbers, size=size, seed=0, processes=processes)
        for label in drawn:
            print(f"\r{split}: {label + 1} of {classes} classes", end="", flush=True)
        print()


def train(data: Path, run: Path, *, model: str, epochs: int, size: int) -> None:
    """Trains and prints how well the classes are told apart."""
    finished = finetune(
        data,
        model=model,
        output=run,
        weights="none",
        audit=False,  # every image is new by construction
        group_from="none",
        epochs=epochs,
        batch_size=128,
        lr=2e-3,
        warmup_epochs=min(1.0, epochs / 10),
        weight_decay=0.05,
        drop_path=0.0,
        label_smoothing=0.1,
        mixup=0.0,
        cutmix=0.0,
        image_size=size,
        min_crop_area=0.3,
        hflip=0.5,
    )
    assert finished.val is not None
    print(f"top-1 {finished.val.top1:.1%} on {finished.val.images:,} images of {len(finished.val.per_class)} classes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images")
    images.add_argument("out", type=Path)
    images.add_argument("--classes", type=int, default=300)
    images.add_argument("--per-class", type=int, default=300)
    images.add_argument("--processes", type=int, default=2)
    training = commands.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("run", type=Path)
    training.add_argument("--model", default="convnext_atto")
    training.add_argument("--epochs", type=int, default=12)
    for command in (images, training):
        command.add_argument("--size", type=int, default=64, help="px")
    options = vars(parser.parse_args())
    if options.pop("command") == "images":
        draw(**options)
    else:
        train(**options)
