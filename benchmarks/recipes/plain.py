"""A plain torch training loop: the specification's skeleton (sections 3.1 and 6)."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from convnext_cli.data.index import Index
from convnext_cli.models.build import ModelOptions, build_model, read_preprocessing
from convnext_cli.models.catalog import BUILTIN, find_model

Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]
LR, WEIGHT_DECAY, SMOOTHING, BATCH = 3e-4, 0.05, 0.1, 32


class Images(Dataset[tuple[torch.Tensor, int]]):
    """The transformed images of a split."""

    def __init__(self, index: Index, split: str, transform: Transform) -> None:
        self.index, self.rows, self.transform = index, index.rows(split), transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        row = self.rows[at]
        with Image.open(self.index.root / self.index.paths[row]) as image:
            return self.transform(image.convert("RGB")), self.index.labels[row]


def build_start(index: Index, model_name: str, weights: str) -> nn.Module:
    """Return a model of timm with these weights and a new classifier."""
    architecture, tag = find_model(f"{model_name}.{BUILTIN}" if weights == BUILTIN else model_name)
    options = ModelOptions(num_classes=len(index.classes))
    start = "auto" if weights == BUILTIN else weights  # the tag stands for built-in weights
    model, _ = build_model(architecture, tag, options, weights=start, offline=True)
    return model


def predict(model: nn.Module, index: Index, transform: Transform) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the logits of the test images, and their classes."""
    model.eval()
    with torch.inference_mode():
        parts = [(model(images), labels) for images, labels in DataLoader(Images(index, "test", transform), BATCH)]
    logits, labels = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return logits, labels


def make_transforms(model: nn.Module, size: int) -> tuple[Transform, Transform]:
    """Return random resized crops with flips for training, and centre crops for testing."""
    preprocessing = read_preprocessing(model)
    end = [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    training = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *end]
    testing = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), *end]
    return transforms.Compose(training), transforms.Compose(testing)


def train_plainly(
    index: Index, model_name: str, weights: str, *, epochs: int, size: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fine-tune weights; return the last epoch's logits of the test images, and their classes."""
    torch.manual_seed(seed)
    model = build_start(index, model_name, weights)
    training, testing = make_transforms(model, size)
    model = model.to(memory_format=torch.channels_last)
    loader = DataLoader(Images(index, "train", training), BATCH, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=1e-6)
    for _ in range(epochs):
        model.train()
        for images, targets in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), targets, label_smoothing=SMOOTHING)
            torch.autograd.backward(loss)
            optimizer.step()
        scheduler.step()
    return predict(model, index, testing)
