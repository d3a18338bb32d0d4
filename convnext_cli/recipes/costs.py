"""Estimates of the memory and time that a training takes, from counts in the catalogue; nothing is allocated."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from convnext_cli.images.preprocessing import split_size
from convnext_cli.machine import Machine
from convnext_cli.models.catalog import Architecture
from convnext_cli.recipes.fingerprint import DataCounts
from convnext_cli.recipes.settings import Settings
from convnext_cli.recipes.tables import read_toml

STATE_BYTES = 12  # per parameter: float32 weight and AdamW's two moments
GRADIENT_BYTES = 4  # per parameter
AVERAGE_BYTES = 4  # per parameter, of a moving average (EMA)
CAST_BYTES = 2  # per parameter, of autocast's copy of the weights in 16 bits
EXCHANGE_BYTES = 128 << 20  # of the gradients that processes exchange at a time, and the result
WORKSPACE = 1.2  # backward temporaries and fragmentation on a CPU, as a factor of the kept activations
# Of float32's activations in 16 bits, as norms and the residual stay in float32; without and with GRN. Measured on an
# H200, the peak's slope over the images (`benchmarks/gpu.py`, part g): 0.578 (tiny), 0.566 (base), 0.657 (V2 tiny).
HALF_FRACTION = {False: 0.58, True: 0.66}
# Of the activations kept with gradient checkpointing: on a CPU 0.34 (small) to 0.58 (V2 nano). On a GPU the input of
# each block, and all of one block. Measured on an H200: 0.27 and 0.32 (tiny and V2 tiny, 18 blocks), 0.20 and 0.23
# (base and V2 base, 36 blocks).
CHECKPOINTED_FRACTION = 0.6
BLOCK_INPUT, BLOCKS_AT_ONCE = 0.14, 3.0  # of a block's activations; blocks that are as large as the largest
USABLE = 0.85  # fraction of the memory; the rest is for the driver, the desktop and the loader

# Effective speed in FLOP/s, counting a training pass as three forward passes. These estimates are within a factor of
# two or three; a different processor or a slow disk changes them by as much.
# On a GPU a training pass moves each byte of its float32 activations this often, and computes at this fraction of the
# tensor cores' FLOP/s. Fitted to timm's benchmark-train table of an RTX 3090 (AMP, channels last, torch 1.12): 819
# images/s of convnext_tiny and 339 of convnext_base; it gives 1,210 for convnext_nano_ols, which has 1,252.
ACTIVATION_PASSES = 8.2
TENSOR_FRACTION = 0.70
REFERENCE_GPU = "RTX 3090"  # for a GPU that is not in `gpus.toml`
GRN_SLOWDOWN = {True: 1.3, False: 1.2}  # V2 against V1, besides its activations: on a GPU (timm's tables), on a CPU
FORWARD_FRACTION = 0.27  # of a training pass: 0.22 (zepto, 64 px) to 0.33 (V2 tiny, 224 px) on a CPU

# The other costs of a run, in seconds of one core; `python -m benchmarks.run_time` compares the total with real runs.
BANK_IMAGES = 5_000  # training images that the OOD score is fitted to, at most; 3 to 20 MB with the model
START_SECONDS = 8.0  # importing torch and timm, building the model, drawing plots, saving
EXPORT_SECONDS = 8.0  # writing model.onnx and checking its parity with the run
AUTOTUNE_SECONDS = 30.0  # passes that autotuning times, in runs of at least AUTOTUNED_PASSES
# Passes of a run that is autotuned, and in which cuDNN searches its fastest algorithms. Measuring takes as long as 30
# passes at most, 3% of the run.
AUTOTUNED_PASSES = 1_000
IMAGE_SECONDS = 1.5e-3  # per image of a batch, besides its pixels: reading, augmentation and small operations
PIXEL_SECONDS = 2e-8  # per decoded pixel
AUDIT_DECODINGS = 2.0  # the audit's work on a decoded pixel, in decodings
AUDIT_SECONDS = 6e-3  # per image: its keypoints, and the search for copies
ROUGH = "within a factor of two or three"  # the precision of an estimate without a measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A training whose duration is estimated: model, settings, data and machine."""

    model: Architecture
    settings: Settings
    counts: DataCounts
    machine: Machine
    check: bool = True
    """True if the images are checked first."""
    onnx: bool = True
    """True if model.onnx is written."""
    folds: int = 1
    """Number of runs of a cross-validation, one after the other."""


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
    basis: str = ROUGH
    """The precision of the estimate, in words."""

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, float]:
        """Return the seconds of each part, for JSON."""
        return {name: seconds for name, seconds in asdict(self).items() if name != "basis"}

    def __str__(self) -> str:
        words = {"head": "frozen phase", "finish": "calibration and export"}
        parts = {words.get(name, name): describe_seconds(s) for name, s in self.to_dict().items() if s >= 0.5}
        shown = ", ".join(f"{name} {duration}" for name, duration in parts.items())
        return f"{describe_seconds(self.total)} ({shown})"


def estimate_time(workload: Workload, *, speed: float = 1.0, basis: str = ROUGH) -> RunTime:
    """Estimate the duration of a fine-tuning.

    `speed` is a factor on the time of all passes, of which `speeds.py` has measured ones; `basis` names its precision.
    """
    settings, counts, machine, folds = workload.settings, workload.counts, workload.machine, workload.folds
    height, width = settings.input_size
    passes = settings.epochs * -(-counts.train // settings.micro_batch_size)
    is_autotuned = passes >= AUTOTUNED_PASSES and not machine.is_gpu
    decoding = (counts.pixels or height * width) * PIXEL_SECONDS

    def forward(images: int) -> float:
        return speed * _process_seconds(workload, images, FORWARD_FRACTION)

    head = forward(counts.train + counts.val) if settings.freeze_epochs else 0.0
    epoch = speed * estimate_epoch(workload) + forward(counts.val)
    calibration = forward(counts.val + min(counts.train, BANK_IMAGES))
    return RunTime(
        start=START_SECONDS + folds * (AUTOTUNE_SECONDS if is_autotuned else 0),
        check=counts.images * (decoding * (1 + AUDIT_DECODINGS) + AUDIT_SECONDS) / machine.cores * workload.check,
        head=folds * head,
        epochs=folds * settings.epochs * epoch,
        finish=folds * (calibration + (EXPORT_SECONDS if workload.onnx else 0.0)),
        basis=basis,
    )


def estimate_epoch(workload: Workload) -> float:
    """Estimate the seconds of training on each image once, with images from the cache."""
    return _process_seconds(workload, workload.counts.train, 1.0)


def _process_seconds(workload: Workload, images: int, fraction: float) -> float:
    """Return the seconds of loading images, and of a fraction of a training pass; a GPU does both at the same time."""
    settings, machine = workload.settings, workload.machine
    height, width = settings.input_size
    computing = fraction * training_seconds(
        workload.model, images, settings.input_size, machine, grad_checkpointing=settings.grad_checkpointing
    )
    loading = images * (IMAGE_SECONDS + height * width * PIXEL_SECONDS) / machine.cores  # of cached images
    return max(computing, loading) if machine.is_gpu else computing + loading


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMemory:
    """The settings and the machine that decide the memory of a training step."""

    size: tuple[int, int]
    """Of an input, (H, W)."""
    grad_checkpointing: bool = False
    half: bool = False
    """True if activations are kept in 16 bits."""
    ema: bool = False
    is_gpu: bool = False
    processes: int = 1
    shards: int = 1
    """Processes over which the parameters are spread."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], machine: Machine | None) -> "StepMemory":
        """Return those of settings, by name, on a machine; None for one that is not known."""
        is_gpu = machine is not None and machine.is_gpu
        amp = settings.get("amp", "auto")
        return cls(
            size=split_size(settings["image_size"]),
            grad_checkpointing=bool(settings.get("grad_checkpointing")),
            half=is_gpu if amp == "auto" else amp != "no",
            ema=bool(settings.get("ema_decay")),
            is_gpu=is_gpu,
            processes=machine.processes if machine else 1,
            shards=machine.shards if machine else 1,
        )


def training_bytes(model: Architecture, images: int, step: StepMemory) -> int:
    """Estimate the peak bytes of a training step with `images` in one forward pass.

    Activations are the tensors that autograd keeps, counted once per architecture at 224 px, times the area.
    """
    activations = images * model.activation_mib * 2**20 * _relative_area(step.size)
    if step.half:
        activations *= HALF_FRACTION[model.grn]
    if step.grad_checkpointing:
        blocks = sum(model.depths)
        activations *= BLOCK_INPUT + BLOCKS_AT_ONCE / blocks if step.is_gpu else CHECKPOINTED_FRACTION
    params = model.params / step.shards
    state = params * (STATE_BYTES + AVERAGE_BYTES * step.ema + CAST_BYTES * step.half)
    gradients = params * GRADIENT_BYTES
    exchange = EXCHANGE_BYTES if step.processes > step.shards else 0
    if step.is_gpu:  # the gradients take the place of the activations that the backward pass frees
        return round(state + max(activations, gradients) + exchange)
    return round(state + gradients + activations * WORKSPACE + exchange)


def largest_micro_batch(model: Architecture, memory: int, batch: int, step: StepMemory) -> int:
    """Return the largest halving of `batch` whose training step fits into `memory` bytes; 0 if no image fits."""
    micro = batch
    while micro and training_bytes(model, micro, step) > memory * USABLE:
        micro //= 2
    return micro


def training_seconds(
    model: Architecture, images: int, size: tuple[int, int], machine: Machine, *, grad_checkpointing: bool = False
) -> float:
    """Estimate the seconds of forward and backward passes over `images` of `size` (H, W)."""
    passes = 4 if grad_checkpointing else 3  # forward, backward worth two, and forward again
    area = _relative_area(size)
    flops = 2 * passes * model.gmacs * 1e9 * area
    slowdown = GRN_SLOWDOWN[machine.is_gpu] if model.grn else 1.0
    if not machine.is_gpu:
        return images * flops * slowdown / (machine.core_flops * machine.cores)
    bandwidth, peak = find_gpu_speed(machine.name)
    moved = model.activation_mib * 2**20 * area * ACTIVATION_PASSES * passes / 3
    return images * slowdown * (flops / (peak * TENSOR_FRACTION) + moved / bandwidth)


def find_gpu_speed(name: str) -> tuple[float, float]:
    """Return memory bandwidth in bytes/s and dense 16-bit FLOP/s of a GPU by its device name."""
    gpus = read_toml("gpus.toml")["gpus"]
    known = gpus[max((key for key in gpus if key.lower() in name.lower()), key=len, default=REFERENCE_GPU)]
    return known["bandwidth"], known["flops"]


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
