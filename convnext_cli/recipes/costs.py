"""Estimates of the memory and time that a training takes, from counts in the catalogue; nothing is allocated."""

from dataclasses import dataclass
from functools import partial

from convnext_cli.machine import Machine
from convnext_cli.models.catalog import Architecture
from convnext_cli.recipes.fingerprint import DataCounts
from convnext_cli.recipes.settings import Settings

BYTES_PER_PARAM = 16  # float32 weight, gradient and AdamW's two moments
WORKSPACE = 1.2  # backward temporaries, library buffers and fragmentation, as a factor of the kept activations
CHECKPOINTED_FRACTION = 0.6  # of the activations kept with gradient checkpointing: 0.34 (small) to 0.58 (V2 nano), CPU
USABLE = 0.85  # fraction of the memory; the rest is for the driver, the desktop and the loader

# Effective speed in FLOP/s, counting a training pass as three forward passes. These tell minutes from days: another
# processor, or images on a slow disk, and they are off by a factor of two or three.
GPU_FLOPS = 31e12  # timm's benchmark-train tables: convnext_base, 339 images/s on an RTX 3090 (AMP, channels last)
GRN_SLOWDOWN = {True: 2.0, False: 1.2}  # V2 against V1 on a GPU without compiling (timm's tables), and on a CPU
FORWARD_FRACTION = 0.27  # of a training pass: 0.22 (zepto, 64 px) to 0.33 (V2 tiny, 224 px) on a CPU

# The other costs of a run, in seconds of one core; `python -m benchmarks.run_time` compares the total with real runs.
MAX_OOD_IMAGES = 5_000  # training images that the OOD reference is fitted to, at most
START_SECONDS = 8.0  # importing torch and timm, building the model, drawing plots, saving
EXPORT_SECONDS = 8.0  # writing model.onnx and checking its parity with the run
AUTOTUNE_SECONDS = 30.0  # passes that autotuning times, in runs of at least AUTOTUNED_PASSES
AUTOTUNED_PASSES = 1_000
IMAGE_SECONDS = 1.5e-3  # per image of a batch, besides its pixels: reading, augmentation and small operations
PIXEL_SECONDS = 2e-8  # per decoded pixel
AUDIT_DECODINGS = 2.0  # the audit's work on a decoded pixel, in decodings


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A training whose duration is estimated: model, settings, data and machine."""

    model: Architecture
    settings: Settings
    counts: DataCounts
    machine: Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class RunTime:
    """Estimated seconds of a fine-tuning, by part."""

    start: float
    """Imports, building the model, and autotuning."""
    check: float
    """Decoding and checking all images."""
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
        shown = ", ".join(f"{name} {describe_seconds(seconds)}" for name, seconds in parts.items() if seconds >= 0.5)
        return f"{describe_seconds(self.total)} ({shown})"


def estimate_time(workload: Workload, *, check: bool = True, onnx: bool = True, folds: int = 1) -> RunTime:
    """Estimate the duration of a fine-tuning.

    Args:
        workload: the training.
        check: True if the images are checked first.
        onnx: True if model.onnx is written.
        folds: number of runs of a cross-validation, one after the other.
    """
    settings, counts, machine = workload.settings, workload.counts, workload.machine
    height, width = settings.input_size
    seconds_for = partial(
        training_seconds,
        workload.model,
        size=settings.input_size,
        machine=machine,
        grad_checkpointing=settings.grad_checkpointing,
    )
    loading = (IMAGE_SECONDS + height * width * PIXEL_SECONDS) / machine.cores  # of a cached image

    def process(images: int, *, training: bool) -> float:
        """Return the seconds of loading and passing images; loading overlaps with a GPU's work only."""
        computing = seconds_for(images) * (1 if training else FORWARD_FRACTION)
        return max(computing, images * loading) if machine.is_gpu else computing + images * loading

    passes = settings.epochs * -(-counts.train // max(1, settings.micro_batch_size))
    is_autotuned = passes >= AUTOTUNED_PASSES and not machine.is_gpu
    decoding = (counts.pixels or height * width) * PIXEL_SECONDS
    head = process(counts.train + counts.val, training=False) if settings.freeze_epochs else 0.0
    epoch = process(counts.train, training=True) + process(counts.val, training=False)
    calibration = process(counts.val + min(counts.train, MAX_OOD_IMAGES), training=False)
    return RunTime(
        start=START_SECONDS + folds * (AUTOTUNE_SECONDS if is_autotuned else 0),
        check=counts.images * decoding * (1 + AUDIT_DECODINGS) / machine.cores if check else 0.0,
        head=folds * head,
        epochs=folds * settings.epochs * epoch,
        finish=folds * (calibration + (EXPORT_SECONDS if onnx else 0.0)),
    )


def training_bytes(model: Architecture, images: int, size: tuple[int, int], *, grad_checkpointing: bool = False) -> int:
    """Estimate the peak bytes of a float32 training step with `images` of `size` (H, W) in one forward pass.

    Activations are the tensors that autograd keeps, counted once per architecture at 224 px, times the area.
    """
    activations = model.activation_mib * 2**20 * _relative_area(size)
    if grad_checkpointing:
        activations *= CHECKPOINTED_FRACTION
    return round(model.params * BYTES_PER_PARAM + images * activations * WORKSPACE)


def largest_micro_batch(
    model: Architecture, size: tuple[int, int], memory: int, batch: int, *, grad_checkpointing: bool = False
) -> int:
    """Return the largest halving of `batch` whose training step fits into `memory` bytes; 0 if no image fits."""
    micro = batch
    while micro and training_bytes(model, micro, size, grad_checkpointing=grad_checkpointing) > memory * USABLE:
        micro //= 2
    return micro


def training_seconds(
    model: Architecture, images: int, size: tuple[int, int], machine: Machine, *, grad_checkpointing: bool = False
) -> float:
    """Estimate the seconds of forward and backward passes over `images` of `size` (H, W)."""
    passes = 4 if grad_checkpointing else 3  # forward, backward worth two, and forward again
    flops = 2 * passes * model.gmacs * 1e9 * _relative_area(size)
    if model.grn:
        flops *= GRN_SLOWDOWN[machine.is_gpu]
    return images * flops / (GPU_FLOPS if machine.is_gpu else machine.core_flops * machine.cores)


def _relative_area(size: tuple[int, int]) -> float:
    """Return the pixels of an input of `size` (H, W) relative to those of 224 px, which the catalogue counts for."""
    return (size[0] / 224) * (size[1] / 224)


def describe_seconds(seconds: float) -> str:
    """Return a duration as text: `40 s`, `12 min`, `3.5 h`, `6 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
