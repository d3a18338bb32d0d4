"""Compare the training loss of `finetune` with that of a plain torch loop, after the same steps and settings.

    python -m benchmarks.losses FOLDER [--images 960] [--epochs 3] [--seeds 5] [--model convnext_zepto_rms]

FOLDER has `train/<class>/` folders. Both start from random weights, with the same images, batches of 32, random
crops of at least half of the area at 64 px, and AdamW at a constant 1e-4. They differ in their random draws, and
`finetune` does not decay biases and norms. The table has the mean loss over the last epoch's images.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.speed import Task, link_images, make_request, make_torch_model, open_images
from convnext_cli.training.events import EpochDone
from convnext_cli.training.finetuning import finetune_steps

SETTINGS = {
    "lr": 1e-4, "min_lr": 1e-4, "warmup_epochs": 0, "weight_decay": 0.05, "layer_decay": 1.0, "freeze_epochs": 0,
    "drop_path": 0.0, "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "hflip": 0.0, "min_crop_area": 0.5,
    "clip_grad": 0.0, "ema_decay": 0.0,
}  # fmt: skip


def train_ours(task: Task, epochs: int, seed: int) -> float:
    """Train with `finetune`, and return the last epoch's mean training loss."""
    request = make_request(task, f"run-{seed}", SETTINGS | {"epochs": epochs, "seed": seed})
    return [event.train_loss for event in finetune_steps(request) if isinstance(event, EpochDone)][-1]


def train_plain(task: Task, epochs: int, seed: int) -> float:
    """Train with a plain torch loop, and return the last epoch's mean training loss."""
    torch.manual_seed(seed)
    model, optimizer = make_torch_model(task)
    loader = open_images(task, workers=0)
    for _ in range(epochs):
        total = 0.0
        for inputs, labels in loader:
            loss = F.cross_entropy(model(inputs), labels)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.item() * len(labels)
    return total / len(loader.dataset)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--model", default="convnext_zepto_rms")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        images = link_images(args.data, Path(work, "data"), args.images)
        task = Task(Path(work, "data"), images, args.model, 64, 32)
        print(f"{args.model}, {images} images, {args.epochs} epochs, training loss of the last; n = {args.seeds}")
        for name, train in (("ours", train_ours), ("plain", train_plain)):
            losses = [train(task, args.epochs, seed) for seed in range(args.seeds)]
            print(f"{name:<6} {statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}")


if __name__ == "__main__":
    main()
