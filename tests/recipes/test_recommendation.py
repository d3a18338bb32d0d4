from pathlib import Path

import pytest

from convnext_cli import recommend
from convnext_cli.data.scan import scan_folder
from convnext_cli.errors import UsageError
from convnext_cli.models.catalog import load_catalog
from convnext_cli.recipes.fingerprint import describe_fingerprint, take_fingerprint
from convnext_cli.recipes.machine import Machine, describe_machine
from tests.conftest import save_image


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


def test_preferences_reorder_what_fits() -> None:
    def order(prefer: str) -> list[str]:
        return [c.model.name for c in recommend(6000, prefer=prefer).candidates if not c.refused]

    catalog = load_catalog()
    top1 = [catalog[name].top1 or 0 for name in order("accuracy")]
    assert top1 == sorted(top1, reverse=True)
    params = [catalog[name].params for name in order("size")]
    assert params == sorted(params)
    fast = order("speed")
    assert fast[0] == "convnext_atto"
    assert fast.index("convnext_tiny") < fast.index("convnextv2_tiny"), "GRN is slow at equal GMACs"
    assert recommend(6000, prefer="accuracy").candidates[-1].model.name == "convnextv2_small", "refused: last"


def test_long_runs_are_said_to_be_long() -> None:
    laptop = Machine(name="CPU", is_gpu=False, memory=16 * 2**30, cores=4)
    found = recommend(6000, machine=laptop, recipe="specification")
    assert any("would take about" in warning for warning in found.warnings)
    assert found.best.plan.recipe.micro_batch_size <= 32
    assert not recommend(6000, vram=24).warnings


def test_this_machine_is_found_without_torch() -> None:
    machine = describe_machine()
    assert machine.memory > 2**30
    assert machine.cores >= 1
    assert not describe_machine(use_gpu=False).is_gpu


@pytest.mark.parametrize("option", ["domain", "prefer", "recipe"])
def test_unknown_words_get_the_known_ones(option: str) -> None:
    with pytest.raises(UsageError, match="Known are"):
        recommend(6000, **{option: "medcial"})  # type: ignore[arg-type]


def test_fingerprint(tmp_path: Path) -> None:
    for i in range(12):
        save_image(tmp_path / f"data/common/{i}.png", size=(40, 30), seed=i)
    for i in range(2):
        save_image(tmp_path / f"data/rare/{i}.png", size=(40, 30), seed=i)
    found = take_fingerprint(scan_folder(tmp_path / "data"))
    assert (found.images, found.classes, found.median_size, found.is_grey) == (14, 2, (40, 30), False)
    assert (found.smallest_class, found.largest_class) == (("rare", 2), ("common", 12))
    (tmp_path / "data/rare/1.png").write_text("no image")
    sentences = " ".join(describe_fingerprint(take_fingerprint(scan_folder(tmp_path / "data"))))
    for words in ("1 of 14 sampled images cannot be opened", "recall of rare", "images are small"):
        assert words in sentences


def test_fingerprint_of_real_images(shared_data: Path, digits: Path) -> None:
    pets = take_fingerprint(scan_folder(shared_data / "pets"))
    assert not pets.is_grey
    xrays = take_fingerprint(scan_folder(shared_data / "cxr3"))
    assert xrays.is_grey, "stored as RGB, and grey all the same"
    assert xrays.median_size == (224, 224)
    assert take_fingerprint(scan_folder(digits)).is_grey
