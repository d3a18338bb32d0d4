from pathlib import Path
from typing import Any

import pytest

from convnext_cli import recommend
from convnext_cli.data.scan import scan_folder
from convnext_cli.errors import UsageError, WeightsError
from convnext_cli.machine import Machine, detect_machine
from convnext_cli.models.catalog import find_model, load_catalog, load_ranking
from convnext_cli.recipes.costs import RunTime, Workload, estimate_time
from convnext_cli.recipes.fingerprint import (
    DataCounts,
    Fingerprint,
    compute_fingerprint,
    describe_fingerprint,
    explain_domain,
    guess_domain,
)
from convnext_cli.recipes.plan import PlanInputs, make_plan
from convnext_cli.recipes.recommendation import DAY, NIGHT
from tests.conftest import save_image
from tests.images.dicom import XRAY, save_dicom


def test_best_candidate_is_the_specifications_first() -> None:
    best = recommend(6000, classes=4).best
    assert best.model.name == "convnextv2_tiny"
    assert best.tag is not None
    assert best.tag.license == "cc-by-nc-4.0"


def test_permissive_licence_recommends_a_v1_model() -> None:
    best = recommend(6000, license="permissive").best
    assert best.model.name == "convnext_tiny"
    assert best.tag is not None
    assert best.tag.is_permissive


@pytest.mark.parametrize("size", [50, 6000, 30_000, 100_000, 500_000, 2_000_000])
@pytest.mark.parametrize("vram", [None, 2, 12, 80])
def test_models_without_weights_are_never_recommended(size: int, vram: float | None) -> None:
    recommendation = recommend(size, vram=vram)
    assert recommendation.best.model.tags
    for candidate in recommendation.candidates:
        if not candidate.model.tags:
            assert candidate.rejection == "no pretrained weights exist for it anywhere"


def test_models_too_large_for_the_memory_are_rejected() -> None:
    recommendation = recommend(2_000_000, vram=4)
    rejected = [candidate for candidate in recommendation.candidates if candidate.rejection]
    assert any("GiB for a single image" in candidate.rejection for candidate in rejected)
    assert recommendation.best not in rejected
    with pytest.raises(UsageError, match="no model is left"):
        recommend(6000, vram=0.01)


@pytest.mark.parametrize(
    ("size", "options"),
    [(0, {}), (-5, {}), (3, {"classes": 4}), (6000, {"classes": 1}), (6000, {"vram": -1}), (6000, {"license": "gpl"})],
)
def test_invalid_numbers_are_refused(size: int, options: dict[str, float | str]) -> None:
    with pytest.raises(UsageError):
        recommend(size, **options)  # type: ignore[arg-type]


def test_very_few_images_per_class_give_a_warning() -> None:
    assert any("very few" in warning for warning in recommend(60, classes=4).warnings)


@pytest.mark.parametrize(
    ("split", "advice"),
    [
        ("val", "--resplit-val draws a larger one from train and val"),
        ("", "Collect more images, or raise --val-fraction (now 0.15)"),
    ],
)
def test_a_val_split_that_is_too_small_gives_a_warning(tmp_path: Path, split: str, advice: str) -> None:
    for number in range(24):
        folder = tmp_path / "data" / (split and ("train" if number < 20 else split))
        save_image(folder / "ab"[number % 2] / f"{number}.png")
    [warning] = [text for text in recommend(tmp_path / "data").warnings if "the validation split has only 4" in text]
    assert warning.partition(". ")[2] == advice
    assert not [text for text in recommend(tmp_path / "data", folds=3).warnings if "the validation split" in text]


def test_preferences_order_the_candidates() -> None:
    def order(prefer: str) -> list[str]:
        return [c.model.name for c in recommend(6000, prefer=prefer).candidates if not c.rejection]

    catalog = load_catalog()
    top1 = [catalog[name].top1 or 0 for name in order("accuracy")]
    assert top1 == sorted(top1, reverse=True)
    params = [catalog[name].params for name in order("size")]
    assert params == sorted(params)
    fast = order("speed")
    assert fast[0] == "convnext_atto"
    assert fast.index("convnext_tiny") < fast.index("convnextv2_tiny"), "GRN is slow at equal GMACs"
    assert recommend(6000, prefer="accuracy").candidates[-1].model.name == "convnextv2_small", "refused: last"


def test_runs_of_days_suggest_a_model_that_finishes_overnight() -> None:
    laptop = Machine(name="CPU", is_gpu=False, memory=16 * 2**30, cores=2)
    recommendation = recommend(6000, machine=laptop, recipe="specification")
    [slow] = [warning for warning in recommendation.warnings if "Overnight" in warning]
    name = slow.partition("--model ")[2].split()[0]
    faster = recommend(6000, machine=laptop, recipe="specification", model=name).best
    assert faster.seconds is not None
    assert faster.seconds <= NIGHT < DAY < (recommendation.best.seconds or 0)
    assert recommendation.best.plan.settings.micro_batch_size <= 32
    assert not recommend(6000, vram=24).warnings
    hopeless = recommend(3_000_000, machine=laptop, recipe="specification").warnings
    assert any("--weights builtin" in warning for warning in hopeless)


@pytest.mark.parametrize(
    ("images", "used"), [(6000, None), (30_000, "small"), (40_000, "medium"), (300_000, "medium"), (500_000, "large")]
)
def test_sizes_without_a_row_in_the_specification_give_a_warning(images: int, used: str | None) -> None:
    warnings = [warning for warning in recommend(images).warnings if "has no row" in warning]
    assert len(warnings) == (used is not None)
    assert all(f"{images:,} images" in text and f"for {used} data sets" in text for text in warnings)


BEST_CHOICE = ("convnextv2_tiny", "convnextv2_small", "convnext_tiny", "convnextv2_nano", "convnext_base")
SECTION_5 = {
    "small": "femto pico nano tiny", "medium": "tiny small base", "large": "base large xlarge",
}  # fmt: skip
RULE_OF_THUMB = {"small": "tiny nano small", "medium": "small base", "large": "large huge"}


@pytest.mark.parametrize("size", [6000, 100_000, 2_000_000])
def test_candidates_name_their_true_place_in_the_specification(size: int) -> None:
    for candidate in recommend(size).candidates:
        where, name = candidate.reason.removeprefix("specification: "), candidate.model.parsed
        kind, _, regime = where.partition(", ")
        if kind == "Best Choice":
            assert BEST_CHOICE[int(regime[0]) - 1] == candidate.model.name
        elif kind == "section 5":
            assert name.family == "convnext"
            assert name.size in SECTION_5[regime].split()
        elif kind == "rule of thumb":
            assert name.size in RULE_OF_THUMB[regime].split()
        else:
            assert where == f"tier {load_ranking()[candidate.model.name].tier}"


def test_users_own_model_comes_first() -> None:
    recommendation = recommend(6000, model="convnext_femto.d1_in1k")
    assert (recommendation.plan.model, recommendation.best.reason) == ("convnext_femto.d1_in1k", "your choice")
    assert recommendation.best.top1 == 78.712
    assert recommend(6000, model="convnext_tiny.fb_in1k").best.top1 == 82.694, "of these weights, not the default ones"
    assert recommend(6000, weights="builtin", prefer="accuracy").best.top1 is None
    assert recommend(6000, model="convnext_xxlarge").candidates[1].model.name == "convnextv2_tiny"
    for model, why in (("convnextv2_small", "no pretrained weights"), ("convnext_xxlarge", "GiB for a single image")):
        with pytest.raises(UsageError, match=why):
            recommend(6000, model=model, vram=2)
    with pytest.raises(UsageError, match="cc-by-nc"):
        recommend(6000, model="convnextv2_tiny", license="permissive")


def test_time_is_estimated_for_the_split() -> None:
    machine = Machine(name="CPU", is_gpu=False, memory=16 * 2**30, cores=2)
    whole = recommend(1000, machine=machine, counts=DataCounts(images=1000, train=1000, val=0)).best.time
    drawn = recommend(1000, machine=machine).best.time
    assert whole is not None
    assert drawn is not None
    assert 0.7 < drawn.epochs / whole.epochs < 0.76, "70% train, 15% are validated at a quarter of the price"


def test_time_has_all_parts() -> None:
    model = find_model("convnext_atto")[0]
    machine = Machine(name="CPU", is_gpu=False, memory=16 * 2**30, cores=2)
    counts = DataCounts(images=1000, train=700, val=150, pixels=1_000_000)

    def estimate(**options: Any) -> RunTime:
        plan = make_plan(PlanInputs(model=model, tag=model.default_tag, counts=counts, machine=machine))
        return estimate_time(Workload(model=model, settings=plan.settings, counts=counts, machine=machine, **options))

    time = estimate()
    parts = (time.start, time.check, time.head, time.epochs, time.finish)
    assert all(seconds > 0 for seconds in parts)
    assert time.total == pytest.approx(sum(parts))
    assert estimate(check=False).check == 0
    assert estimate(onnx=False).finish < time.finish
    assert estimate(folds=5).epochs == pytest.approx(5 * time.epochs)
    assert time.head < time.epochs / 10
    for name in ("check", "frozen phase", "epochs", "calibration and export"):
        assert name in str(time)


def test_machine_is_detected() -> None:
    machine = detect_machine()
    assert machine.memory > 2**30
    assert machine.cores >= 1
    assert not detect_machine(use_gpu=False).is_gpu


@pytest.mark.parametrize("option", ["domain", "prefer", "recipe"])
def test_unknown_words_are_refused_with_the_known_ones(option: str) -> None:
    with pytest.raises(UsageError, match="Known: "):
        recommend(6000, **{option: "medcial"})  # type: ignore[arg-type]


def test_fingerprint_counts_and_sizes(tmp_path: Path) -> None:
    for i in range(12):
        save_image(tmp_path / f"data/common/{i}.png", size=(40, 30), seed=i)
    for i in range(2):
        save_image(tmp_path / f"data/rare/{i}.png", size=(40, 30), seed=i)
    fingerprint = compute_fingerprint(scan_folder(tmp_path / "data"))
    assert (fingerprint.images, fingerprint.classes) == (14, 2)
    assert (fingerprint.median_size, fingerprint.is_grey) == ((40, 30), False)
    assert (fingerprint.smallest_class, fingerprint.largest_class) == (("rare", 2), ("common", 12))
    (tmp_path / "data/rare/1.png").write_text("no image")
    sentences = " ".join(describe_fingerprint(compute_fingerprint(scan_folder(tmp_path / "data"))))
    for words in ("1 of 14 sampled images cannot be opened", "recall of rare"):
        assert words in sentences


def test_fingerprint_of_real_images(shared_data: Path, digits: Path) -> None:
    pets = compute_fingerprint(scan_folder(shared_data / "pets"))
    assert not pets.is_grey
    xrays = compute_fingerprint(scan_folder(shared_data / "cxr3"))
    assert xrays.is_grey, "stored as RGB, and grey all the same"
    assert xrays.median_size == (224, 224)
    assert [guess_domain(fingerprint) for fingerprint in (pets, xrays)] == [None, "medical"]
    small = compute_fingerprint(scan_folder(digits))
    assert small.is_grey
    assert guess_domain(small) is None, "digits are no X-rays"


def test_dicom_files_count_in_the_fingerprint(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        save_dicom(tmp_path / "ab"[number % 2] / f"{number}.dcm", XRAY)
    (tmp_path / "a/damaged.dcm").write_bytes(b"DICM")
    fingerprint = compute_fingerprint(scan_folder(tmp_path))
    assert fingerprint.median_size == XRAY.shape[::-1]
    assert (fingerprint.is_grey, fingerprint.dicom, fingerprint.unreadable) == (True, 4, 1)


def test_random_initialisation_has_no_licence() -> None:
    assert recommend(6000, weights="none", model="convnext_tiny").best.license is None
    assert recommend(6000, model="convnext_tiny").best.license == "apache-2.0"


def test_dicom_is_medical() -> None:
    files = Fingerprint(
        images=9, classes=2, groups=0, smallest_class=("a", 4), largest_class=("b", 5), sampled=9,
        median_size=(0, 0), is_grey=True, unreadable=0, dicom=9,
    )  # fmt: skip
    assert guess_domain(files) == "medical"
    assert "DICOM" in explain_domain(files, "")


def test_weights_reach_the_plan_and_the_candidates() -> None:
    builtin = recommend(6000, weights="builtin")
    assert (builtin.plan.model, builtin.plan.weights) == ("convnext_zepto_rms.builtin", "auto")
    hub = recommend(6000, weights="timm/convnext_tiny.fb_in22k")
    assert (hub.plan.model, hub.plan.weights) == ("convnext_tiny.fb_in22k", "auto")
    scratch = recommend(6000, weights="none", model="convnextv2_small")
    assert (scratch.plan.model, scratch.plan.weights) == ("convnextv2_small", "none")
    with pytest.raises(UsageError, match="are for convnext_zepto_rms"):
        recommend(6000, weights="builtin", model="convnext_tiny")
    with pytest.raises(WeightsError, match="no weights at"):
        recommend(6000, weights="missing.pth")
