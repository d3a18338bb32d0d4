"""How much memory training needs, from counts in the catalogue; nothing is allocated to find out."""

from convnext_cli.models.catalog import Architecture

GIB = 2**30
BYTES_PER_PARAM = 16  # float32 weight, gradient and AdamW's two moments
WORKSPACE = 1.2  # backward temporaries, library buffers and fragmentation beside the kept activations
USABLE = 0.85  # of the memory; the rest belongs to the driver, the desktop and the loader


def training_bytes(model: Architecture, images: int, image_size: int) -> int:
    """Estimated peak bytes of a float32 training step with `images` of `image_size` pixels in one forward pass.

    Activations are the tensors that autograd keeps, counted once per architecture at 224 px, times the area.
    """
    activations = model.activation_mib * 2**20 * (image_size / 224) ** 2
    return round(model.params * BYTES_PER_PARAM + images * activations * WORKSPACE)


def largest_micro_batch(model: Architecture, image_size: int, memory: int, batch: int) -> int:
    """The largest halving of `batch` whose training step fits into `memory` bytes; 0 where not one image does."""
    micro = batch
    while micro and training_bytes(model, micro, image_size) > memory * USABLE:
        micro //= 2
    return micro
