import numpy as np
import pytest
import torch

from convnext_cli.training.parts.mixing import mix_batch


def images_and_targets(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose pixels are their number, so that a mixed image shows its sources."""
    images = torch.arange(batch).float().view(batch, 1, 1, 1).expand(batch, 3, 16, 16).clone()
    return images, torch.eye(batch)


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_mixup_mixes_targets_like_images(batch: int) -> None:
    images, targets = images_and_targets(batch)
    mixed, soft = mix_batch(images, targets, np.random.default_rng(0), mixup=0.8, cutmix=0.0)
    expected = (soft * torch.arange(batch)).sum(1)
    assert torch.allclose(mixed[:, 0, 0, 0], expected, atol=1e-5)
    assert torch.allclose(soft.sum(1), torch.ones(batch))


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_mixes_targets_by_area(seed: int) -> None:
    images, targets = images_and_targets(4)
    mixed, soft = mix_batch(images, targets, np.random.default_rng(seed), mixup=0.0, cutmix=1.0)
    for i in range(4):
        fraction = (mixed[i, 0] == i).float().mean()
        assert soft[i, i] == pytest.approx(fraction.item(), abs=1e-6)
        assert set(mixed[i].flatten().tolist()) <= {i, 3 - i}
    assert torch.equal(images, images_and_targets(4)[0]), "the batch itself is unchanged"


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
@pytest.mark.parametrize("channels", [1, 3])
def test_mixed_images_keep_their_strides(channels: int, method: str) -> None:
    """A model that is compiled for others would be compiled again, in the middle of the training."""
    images = torch.rand(4, 16, 16, channels).permute(0, 3, 1, 2)
    alphas = {"mixup": 0.0, "cutmix": 0.0, method: 1.0}
    mixed, _ = mix_batch(images, torch.eye(4), np.random.default_rng(0), **alphas)
    assert mixed.stride() == images.stride()


def test_mixing_off_changes_nothing() -> None:
    images, targets = images_and_targets(4)
    assert mix_batch(images, targets, np.random.default_rng(0), mixup=0.0, cutmix=0.0) == (images, targets)
