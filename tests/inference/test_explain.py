import numpy as np
import pytest
import timm
import torch

from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.transforms import locate_frame, transform_for_eval
from convnext_cli.inference.heat_maps import draw_explanation, overlay_heat
from convnext_cli.inference.torch_classifier import map_heat
from convnext_cli.models.forward import make_views, split_model

MODELS = [("convnext_atto", {}), ("convnextv2_atto", {}), ("convnext_atto", {"head_norm_first": True})]


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_heat_map_is_gradient_times_features(name: str, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **options).eval()
    inputs = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        places, _, logits = split_model(model, inputs)
        assert torch.equal(logits, model(inputs))
        heat = map_heat(model, places, torch.tensor([0, 2]))
    assert heat.shape == (2, 2, 2)
    features = model.forward_features(inputs).detach().requires_grad_()
    logits = model.forward_head(features)
    (gradient,) = torch.autograd.grad(logits[0, 0] + logits[1, 2], features)
    assert torch.allclose(heat, (gradient * features).sum(1).relu(), atol=1e-6), "the same at every place, so exact"


def test_random_weights_change_the_heat_map() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(4, 3, 128, 128)
    maps = []
    for _ in range(2):
        model = timm.create_model("test_convnext", num_classes=3).eval()
        with torch.inference_mode():
            places, _, _ = split_model(model, inputs)
            maps.append(map_heat(model, places, torch.zeros(4, dtype=torch.long)).flatten().numpy())
    assert abs(np.corrcoef(maps[0], maps[1])[0, 1]) < 0.7


def test_heat_is_drawn_at_its_position() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 3] = 2.0
    drawn = overlay_heat(image, heat).astype(int)
    changed = np.abs(drawn - 100).sum(-1)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert (row // 16, column // 16) == (1, 3)
    assert (changed[40:, :32] == 0).all()
    assert np.array_equal(overlay_heat(image, np.zeros((4, 4), np.float32)), image)


@pytest.mark.parametrize(("width", "height"), [(300, 100), (100, 300), (200, 200), (123, 61)])
@pytest.mark.parametrize(("mode", "pct"), [("center", 0.875), ("center", 1.0), ("squash", 1.0)])
def test_heat_map_covers_the_crop(width: int, height: int, mode: str, pct: float) -> None:
    preprocessing = Preprocessing(
        image_size=64, crop_pct=pct, crop_mode=mode, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack([255 * columns / width, 255 * rows / height, 0 * rows], axis=-1).astype(np.uint8)
    seen = transform_for_eval(image, preprocessing)
    left, top, right, bottom = locate_frame(width, height, preprocessing)
    ends = 255 * np.array([left / width, right / width, top / height, bottom / height])
    bounds = [seen[..., 0].min(), seen[..., 0].max(), seen[..., 1].min(), seen[..., 1].max()]
    assert np.allclose(ends, bounds, atol=255 / 61 + 3), "the gradient says which part was seen"
    drawn = np.asarray(draw_explanation(image, [np.ones((2, 2), np.float32)], (left, top, right, bottom), "a 99.0%"))
    assert drawn.shape[1] > 2 * width
    assert np.array_equal(drawn[:height, :width], image), "the original, at its own size"
    beside = drawn[:height, -width:].astype(int)
    changed = np.abs(beside - image).sum(-1) > 0
    inside = (columns >= round(left)) & (columns < round(right)) & (rows >= round(top)) & (rows < round(bottom))
    assert np.array_equal(changed, inside)


def test_views_are_shifted_and_mirrored_on_request() -> None:
    inputs = torch.arange(2 * 3 * 32 * 32, dtype=torch.float32).view(2, 3, 32, 32)
    views = make_views(inputs, mirror=False)
    assert len(views) == 5
    assert torch.equal(views[0], inputs)
    assert torch.equal(views[1][..., 2:, 2:], inputs[..., :-2, :-2])
    mirrored = make_views(inputs, mirror=True)
    assert len(mirrored) == 10
    assert torch.equal(mirrored[5], inputs.flip(-1))


def plant(images: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise (N, 3, 128, 128), every other image with a striped patch of 32 px; which have one, and in which cell."""
    inputs = 0.3 * torch.randn(images, 3, 128, 128, generator=random)
    planted = torch.arange(images) % 2
    cells = torch.randint(0, 4, (images, 2), generator=random)
    stripes = torch.where(torch.arange(32) // 4 % 2 == 0, 2.0, -2.0)
    for i in range(1, images, 2):
        row, column = (32 * cells[i]).tolist()
        inputs[i, :, row : row + 32, column : column + 32] = stripes[:, None]
    return inputs, planted, cells


def test_heat_map_finds_a_planted_patch() -> None:
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        inputs, planted, _ = plant(16, random)
        loss = torch.nn.functional.cross_entropy(model(inputs), planted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    inputs, planted, cells = (part[1::2] for part in plant(100, random))
    with torch.inference_mode():
        places, _, logits = split_model(model.eval(), inputs)
        heat = map_heat(model, places, planted).numpy()
    assert (logits.argmax(1) == 1).float().mean() > 0.75, "the patch was learned"
    hottest = np.array([np.unravel_index(one.argmax(), one.shape) for one in heat])
    assert np.mean((hottest == cells.numpy()).all(axis=1)) > 0.8, "by chance 1 in 16"
