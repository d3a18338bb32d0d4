"""What training will need in memory and time, from counts in the catalogue; nothing is allocated to find out."""

from dataclasses import dataclass
from functools import partial

from convnext_cli.machine import CORE_FLOPS
from convnext_cli.models.catalog import Architecture
from convnext_cli.recipes.settings import Settings

BYTES_PER_PARAM = 16  # float32 weight, gradient and AdamW's two moments
WORKSPACE = 1.2  # backward temporaries, library buffers and fragmentation beside the kept activations
CHECKPOINTED = (
    0.6  # of the activations stay with gradient checkpointing: 0.34 (small) to 0.58 (V2 nano) on a CPU, 160 px
)
USABLE = 0.85  # of the memory; the rest belongs to the driver, the desktop and the loader

# Effective speed, in FLOP/s, counting a training pass as three forward passes. These tell minutes from days: another
# processor, or images on a slow disk, and they are off by two or three.
GPU_FLOPS = 31e12  # timm's benchmark-train tables: convnext_base, 339 images/s on an RTX 3090 (AMP, channels last)
GRN_SLOWDOWN = {True: 2.0, False: 1.2}  # V2 against V1 on a GPU without compiling (timm's tables), and on a CPU
FORWARD_SHARE = 0.27  # of a training pass: 0.22 (zepto, 64 px) to 0.33 (V2 tiny, 224 px) on a CPU

# What a run costs besides, in seconds of one core; `python -m benchmarks.run_time` compares the whole with real runs.
BANK_IMAGES = 5_000  # training images that calibration looks at, at most
STARTING = 8.0  # importing torch and timm, building the model, drawing plots, saving
FINISHING = 8.0  # writing model.onnx and comparing its answers with the run's
PROBING = 30.0  # passes that are tried in runs of PROBED_PASSES or more
PROBED_PASSES = 1_000
IMAGE_OVERHEAD = 1.5e-3  # for each image of a batch, besides its pixels: reading, augmentation, and small operations
PIXEL_SECONDS = 2e-8  # for each pixel that is decoded
CHECKS = 2.0  # the audit's work on a decoded pixel, in decodings


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTime:
    """Estimated seconds of a fine-tuning, by part."""

    start: float
    """Imports, the model, and trying what computes fastest."""
    check: float
    """Decoding and checking every image."""
    head: float
    """Features of the frozen backbone, for the frozen phase."""
    epochs: float
    """Training, and validation after each epoch."""
    finish: float
    """Calibration, and writing model.onnx."""

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return self.start + self.check + self.head + self.epochs + self.finish

    def __str__(self) -> str:
        parts = {
            "start": self.start, "check": self.check, "frozen phase": self.head, "epochs": self.epochs,
            "calibration and export": self.finish,
        }  # fmt: skip
        told = ", ".join(f"{name} {describe_seconds(seconds)}" for name, seconds in parts.items() if seconds >= 0.5)
        return f"{describe_seconds(self.total)} ({told})"


def estimate_time(
    model: Architecture,
    recipe: Settings,
    *,
    train: int,
    val: int,
    images: int,
    pixels: int,
    is_gpu: bool,
    cores: int,
    core_flops: float,
    check: bool = True,
    onnx: bool = True,
    folds: int = 1,
) -> RunTime:
    """Estimate how long a fine-tuning takes, for `recommend` and `finetune --dry-run` alike.

    Args:
        model: the architecture.
        recipe: all settings.
        train: images of the training split.
        val: images of the validation split.
        images: images that are checked, all splits together.
        pixels: of an image's file; 0 where it is not known, which counts as the input size.
        is_gpu: whether a GPU trains.
        cores: processors of this process.
        core_flops: FLOP/s of one of them in training.
        check: whether the images are checked first.
        onnx: whether model.onnx is written.
        folds: runs, one after the other.
    """
    side = recipe.image_size
    decoding = (pixels or side * side) * PIXEL_SECONDS
    passing = partial(
        training_seconds,
        model,
        image_size=side,
        is_gpu=is_gpu,
        cores=cores,
        core_flops=core_flops,
        grad_checkpointing=recipe.grad_checkpointing,
    )
    loading = (IMAGE_OVERHEAD + side * side * PIXEL_SECONDS) / cores  # of a cached image

    def show(number: int, *, training: bool) -> float:
        """Seconds to take so many images through the model; loading hides behind a GPU, not behind a processor."""
        computing = passing(number) * (1 if training else FORWARD_SHARE)
        return max(computing, number * loading) if is_gpu else computing + number * loading

    passes = recipe.epochs * -(-train // max(1, recipe.micro_batch_size))
    start = STARTING + folds * (PROBING if passes >= PROBED_PASSES and not is_gpu else 0)
    return RunTime(
        start=start,
        check=images * decoding * (1 + CHECKS) / cores if check else 0.0,
        head=folds * (show(train + val, training=False) if recipe.freeze_epochs else 0.0),
        epochs=folds * recipe.epochs * (show(train, training=True) + show(val, training=False)),
        finish=folds * (show(val + min(train, BANK_IMAGES), training=False) + (FINISHING if onnx else 0.0)),
    )


def training_bytes(model: Architecture, images: int, image_size: int, *, grad_checkpointing: bool = False) -> int:
    """Estimated peak bytes of a float32 training step with `images` of `image_size` pixels in one forward pass.

    Activations are the tensors that autograd keeps, counted once per architecture at 224 px, times the area.
    """
    activations = model.activation_mib * 2**20 * (image_size / 224) ** 2
    if grad_checkpointing:
        activations *= CHECKPOINTED
    return round(model.params * BYTES_PER_PARAM + images * activations * WORKSPACE)


def largest_micro_batch(
    model: Architecture, image_size: int, memory: int, batch: int, *, grad_checkpointing: bool = False
) -> int:
    """The largest halving of `batch` whose training step fits into `memory` bytes; 0 where not one image does."""
    micro = batch
    while micro and training_bytes(model, micro, image_size, grad_checkpointing=grad_checkpointing) > memory * USABLE:
        micro //= 2
    return micro


def training_seconds(
    model: Architecture,
    images: int,
    image_size: int,
    *,
    is_gpu: bool,
    cores: int,
    core_flops: float = CORE_FLOPS,
    grad_checkpointing: bool = False,
) -> float:
    """Estimate the seconds of forward and backward passes over `images` of `image_size` pixels."""
    passes = 4 if grad_checkpointing else 3  # forward, backward worth two, and forward again
    flops = 2 * passes * model.gmacs * 1e9 * (image_size / 224) ** 2
    if model.grn:
        flops *= GRN_SLOWDOWN[is_gpu]
    return images * flops / (GPU_FLOPS if is_gpu else core_flops * cores)


def describe_seconds(seconds: float) -> str:
    """A duration as one would say it: `40 s`, `12 min`, `3.5 h`, `6 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
