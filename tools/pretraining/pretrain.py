"""Pretrain the built-in weights from random initialisation with this project's `finetune`.

    python -m tools.pretraining.pretrain formulas OUT [--classes 300 --per-class 100]
    python -m tools.pretraining.pretrain tiny ZIP OUT
    python -m tools.pretraining.pretrain train DATA RUN [--model convnext_zepto_rms] [--stages 32x6 64x3]
    python -m tools.pretraining.pretrain pack RUN

`formulas` generates images by formulas. `tiny` unpacks Tiny ImageNet at 32 px without the unseen classes. `train` takes
any folder of images; each stage, PIXELSxEPOCHS, starts from the weights of the one before: most epochs on small images,
the last ones on larger. `pack` writes the run's weights in 16 bits into the package; their model card,
`convnext_cli/models/builtin/card.toml`, is written by hand.
"""

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path

from convnext_cli import finetune
from convnext_cli.models.catalog import load_builtin
from tools.pretraining.formulas import write_images

VAL_PER_CLASS = 10
BATCH = 96
PEAKS = (2e-3, 1e-3)  # learning rate of the first stage, and of the later ones
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


def unpack(archive: Path, out: Path) -> None:
    """Unpack `{train,val}/<class>/` of the classes to pretrain on."""
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(out, [name for name in opened.namelist() if not HELD_OUT & set(Path(name).parts)])


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
            lr=PEAKS[min(number, 1)],
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


def pack(run: Path) -> None:
    """Write the run's weights into the package."""
    import torch

    from convnext_cli.models.catalog import find_model
    from convnext_cli.models.weights import find_weights, read_weights, write_tensors

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
    training = commands.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("run", type=Path)
    training.add_argument("--model", default="convnext_zepto_rms")
    training.add_argument("--stages", nargs="+", default=["32x6", "64x3"], metavar="PIXELSxEPOCHS")
    packing = commands.add_parser("pack")
    packing.add_argument("run", type=Path)
    options = vars(parser.parse_args())
    commands_by_name: dict[str, Callable[..., None]] = {"formulas": draw, "tiny": unpack, "train": train, "pack": pack}
    commands_by_name[options.pop("command")](**options)


if __name__ == "__main__":
    main()
