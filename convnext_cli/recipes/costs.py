"""What training will need in memory and time, from counts in the catalogue; nothing is allocated to find out."""

from convnext_cli.models.catalog import Architecture

GIB = 2**30
BYTES_PER_PARAM = 16  # float32 weight, gradient and AdamW's two moments
WORKSPACE = 1.2  # backward temporaries, library buffers and fragmentation beside the kept activations
CHECKPOINTED = (
    0.6  # of the activations stay with gradient checkpointing: 0.34 (small) to 0.58 (V2 nano) on a CPU, 160 px
)
USABLE = 0.85  # of the memory; the rest belongs to the driver, the desktop and the loader

# Effective speed of a training step, in FLOP/s, counting forward plus twice that for backward. They serve to tell
# minutes from days: another GPU, another data set on a slow disk, and it is off by two or three.
GPU_FLOPS = 31e12  # timm's benchmark-train tables: convnext_base, 339 images/s on an RTX 3090 (AMP, channels last)
CPU_FLOPS_PER_CORE = 30e9  # convnext_atto at 224 px, batch 32, on two server cores with AVX-512: 17 to 35 images/s
GRN_SLOWDOWN = {True: 2.0, False: 1.1}  # V2 against V1 on a GPU without compiling (timm's tables), and on a CPU


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
    model: Architecture, images: int, image_size: int, *, is_gpu: bool, cores: int, grad_checkpointing: bool = False
) -> float:
    """Estimated seconds to train on `images` (epochs times data set) of `image_size` pixels."""
    passes = 4 if grad_checkpointing else 3  # forward, backward worth two, and forward again
    flops = 2 * passes * model.gmacs * 1e9 * (image_size / 224) ** 2
    if model.grn:
        flops *= GRN_SLOWDOWN[is_gpu]
    return images * flops / (GPU_FLOPS if is_gpu else CPU_FLOPS_PER_CORE * cores)


def describe_seconds(seconds: float) -> str:
    """A duration as one would say it: `40 s`, `12 min`, `3.5 h`, `6 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"
