"""The losses of labels and numbers."""

import pytest
import torch
import torch.nn.functional as F

from convnext_cli.training.parts.loss import AsymmetricLoss, BinaryCrossEntropy, Huber

TARGETS = torch.tensor([[1.0, 0.0, -1.0], [float("nan"), 1.0, 0.0]])
LOGITS = torch.tensor([[0.3, -0.2, 1.5], [2.0, 0.1, -0.4]])


@pytest.mark.parametrize(("uncertain", "value"), [(None, None), (1.0, 1.0), (0.0, 0.0), (0.7, 0.7)])
def test_unknown_labels_add_nothing_and_uncertain_ones_count_as_told(
    uncertain: float | None, value: float | None
) -> None:
    loss = BinaryCrossEntropy(uncertain=uncertain)
    expected = F.binary_cross_entropy_with_logits(LOGITS[0, :2], TARGETS[0, :2], reduction="sum")
    expected += F.binary_cross_entropy_with_logits(LOGITS[1, 1:], TARGETS[1, 1:], reduction="sum")
    if value is not None:
        expected += F.binary_cross_entropy_with_logits(LOGITS[0, 2], torch.tensor(value))
    assert loss.sum_losses(LOGITS, loss.encode(TARGETS)) == pytest.approx(expected.item() / 3)


def test_mixed_labels_mix_the_losses_of_both_images() -> None:
    """Also where a label is known of one image only."""
    loss = BinaryCrossEntropy(uncertain=None)
    encoded = loss.encode(TARGETS)
    mixed = torch.lerp(encoded.flip(0), encoded, 0.3)
    expected = 0.3 * loss.sum_losses(LOGITS, encoded) + 0.7 * loss.sum_losses(LOGITS, encoded.flip(0))
    assert loss.sum_losses(LOGITS, mixed) == pytest.approx(expected.item())


def test_asymmetric_loss_is_that_of_the_paper() -> None:
    """arXiv:2009.14119, equations 4 to 7, with gamma+ = 0, gamma- = 4 and margin 0.05; unknown labels add nothing."""
    loss, p = AsymmetricLoss(uncertain=None), LOGITS.sigmoid()
    terms = {(0, 0): -p[0, 0].log(), (1, 1): -p[1, 1].log()}
    for place in ((0, 1), (1, 2)):
        shifted = (p[place] - 0.05).clamp(min=0)
        terms[place] = -(shifted**4) * (1 - shifted).log()
    expected = sum(term.item() for term in terms.values()) / 3
    assert loss.sum_losses(LOGITS, loss.encode(TARGETS)) == pytest.approx(expected)
    extreme = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    torch.autograd.backward(loss.sum_losses(extreme, loss.encode(torch.tensor([[0.0, 0.0, 1.0]]))))
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_weights_of_positive_images_reach_the_loss() -> None:
    weighted = BinaryCrossEntropy(uncertain=None, positive_weights=torch.tensor([4.0, 1.0, 1.0]))
    plain = BinaryCrossEntropy(uncertain=None)
    gap = weighted.sum_losses(LOGITS, weighted.encode(TARGETS)) - plain.sum_losses(LOGITS, plain.encode(TARGETS))
    assert gap == pytest.approx(3 * F.softplus(-LOGITS[0, 0]).item() / 3)


@pytest.mark.parametrize("log", [False, True])
def test_numbers_are_standardised(log: bool) -> None:
    numbers = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    values = numbers.log() if log else numbers
    loss = Huber(mean=float(values.mean()), std=float(values.std(correction=0)), log=log)
    encoded = loss.encode(numbers)
    assert encoded.shape == (3, 1)
    assert encoded.mean() == pytest.approx(0, abs=1e-6)
    assert encoded.std(correction=0) == pytest.approx(1, abs=1e-6)
    assert loss.sum_losses(encoded, encoded) == 0
