import pytest

from convnext_cli import recommend
from convnext_cli.errors import UsageError


def test_leads_with_the_specifications_choice_and_its_licence() -> None:
    found = recommend(6000, classes=4)
    assert found.best.model.name == "convnextv2_tiny"
    assert found.best.tag is not None
    assert found.best.tag.license == "cc-by-nc-4.0"


def test_permissive_gives_a_v1_model() -> None:
    best = recommend(6000, license="permissive").best
    assert best.model.name == "convnext_tiny"
    assert best.tag is not None
    assert best.tag.is_permissive


@pytest.mark.parametrize("size", [50, 6000, 30_000, 100_000, 500_000, 2_000_000])
@pytest.mark.parametrize("vram", [None, 2, 12, 80])
def test_a_model_without_weights_is_never_recommended(size: int, vram: float | None) -> None:
    found = recommend(size, vram=vram)
    assert found.best.model.tags
    for candidate in found.candidates:
        if not candidate.model.tags:
            assert candidate.refused == "no pretrained weights exist for it anywhere"


def test_little_memory_moves_down_the_list_and_says_why() -> None:
    found = recommend(2_000_000, vram=4)
    refused = [candidate for candidate in found.candidates if candidate.refused]
    assert any("GiB for a single image" in candidate.refused for candidate in refused)
    assert found.best not in refused
    with pytest.raises(UsageError, match="no model is left"):
        recommend(6000, vram=0.01)


@pytest.mark.parametrize(
    ("size", "options"),
    [(0, {}), (-5, {}), (3, {"classes": 4}), (6000, {"classes": 1}), (6000, {"vram": -1}), (6000, {"license": "gpl"})],
)
def test_senseless_numbers_are_refused(size: int, options: dict[str, float | str]) -> None:
    with pytest.raises(UsageError):
        recommend(size, **options)  # type: ignore[arg-type]


def test_very_small_data_is_said_to_be_so() -> None:
    assert any("very few" in warning for warning in recommend(60, classes=4).warnings)
