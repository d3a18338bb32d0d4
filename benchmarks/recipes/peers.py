"""Fine-tuning by other programs with their own defaults, on the same images and from the same weights.

Each has its own preprocessing, augmentation, optimizer and schedule. All get the same model of timm with the same
pretrained weights, the same number of epochs, and the input size of the data set. They run on the CPU.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from benchmarks.recipes.plain import Images, build_start, make_transforms, predict
from convnext_cli.data.index import Index
from convnext_cli.models.build import read_preprocessing


def train_with_fastai(
    index: Index, model_name: str, weights: str, *, epochs: int, size: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fine-tune by fastai's `vision_learner` and `fine_tune`; return the logits of the test images and their classes.

    Batches of 64, a frozen epoch and then `epochs` with its one-cycle schedule, its head, `aug_transforms`.
    """
    from fastai.vision import all as fastai

    fastai.set_seed(seed, reproducible=True)
    model = build_start(index, model_name, weights)
    preprocessing = read_preprocessing(model)
    normalise = fastai.Normalize.from_stats(preprocessing.mean, preprocessing.std, cuda=False)
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock(vocab=list(index.classes))),
        splitter=fastai.FuncSplitter(lambda row: index.splits[row] == "val"),
        get_x=lambda row: index.root / index.paths[row],
        get_y=lambda row: index.name_class(row),  # noqa: PLW0108  (fastai refuses a method)
        item_tfms=fastai.Resize(2 * size),
        batch_tfms=[*fastai.aug_transforms(size=size, min_scale=0.75), normalise],
    )
    loaders = block.dataloaders([*index.rows("train"), *index.rows("val")], num_workers=0, device="cpu")
    learner = fastai.vision_learner(loaders, model_name, pretrained=False, normalize=False)
    body = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    missing = learner.model[0].model.load_state_dict(body, strict=False)
    assert not missing.unexpected_keys, missing
    assert all(name.startswith("head.") for name in missing.missing_keys), missing
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
    test = index.rows("test")
    logits = learner.get_preds(dl=loaders.test_dl(test, num_workers=0), act=nn.Identity())[0]
    return logits.numpy(), np.array([index.labels[row] for row in test])


class _WithLoss(nn.Module):
    """A model with the inputs and outputs that the Trainer wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


def train_with_transformers(
    index: Index, model_name: str, weights: str, *, epochs: int, size: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fine-tune by the Trainer of transformers; return the logits of the test images and their classes.

    Its defaults: AdamW, learning rate 5e-5 with linear decay, batches of 8; random resized crops and flips as in its
    example `run_image_classification.py`.
    """
    from transformers import Trainer, TrainingArguments, set_seed

    set_seed(seed)
    model = build_start(index, model_name, weights)
    training, testing = make_transforms(model, size)

    def collate(rows: list[tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
        pixels, labels = zip(*rows, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(labels)}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, seed=seed, use_cpu=True, report_to=[], save_strategy="no",
            remove_unused_columns=False, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(
            _WithLoss(model), arguments, data_collator=collate, train_dataset=Images(index, "train", training)
        )
        trainer.train()
    return predict(model, index, testing)


def train_with_timm(
    index: Index, model_name: str, weights: str, *, epochs: int, size: int, seed: int, options: Sequence[str] = ()
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fine-tune by timm's train.py; return the best epoch's logits of the test images, and their classes.

    The environment variable TIMM_TRAIN names the script, which timm's package lacks. Its defaults: SGD, batches of 128,
    cosine schedule.
    """
    torch.manual_seed(seed)
    model = build_start(index, model_name, weights)
    preprocessing = read_preprocessing(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "val"):
            for row in index.rows(split):
                place = folder / "data" / split / f"{index.labels[row]:03}"
                place.mkdir(parents=True, exist_ok=True)
                source = index.root / index.paths[row]
                (place / f"{row}{source.suffix}").symlink_to(source)
        torch.save(model.state_dict(), folder / "start.pth")
        words = [
            *("--data-dir", folder / "data", "--output", folder / "out", "--experiment", "run", "--model", model_name),
            *("--num-classes", len(index.classes), "--initial-checkpoint", folder / "start.pth", "--val-split", "val"),
            *("--img-size", size, "--epochs", epochs, "--seed", seed, "--device", "cpu", "--workers", 1),
            *("--mean", *preprocessing.mean, "--std", *preprocessing.std, "--no-prefetcher", *options),
        ]
        command = [sys.executable, os.environ["TIMM_TRAIN"], *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        best = folder / "out/run/model_best.pth.tar"
        model = timm.create_model(model_name, num_classes=len(index.classes), checkpoint_path=best)
    config = {"input_size": (3, size, size), "mean": preprocessing.mean, "std": preprocessing.std}
    testing = timm.data.create_transform(**timm.data.resolve_data_config(config, model=model))
    return predict(model, index, testing)
