from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_cli.errors import UsageError
from convnext_cli.models.catalog import Architecture, find_model, load_catalog
from convnext_cli.recipes.memory import GIB, largest_micro_batch, training_bytes
from convnext_cli.recipes.plan import Choice, Plan, make_plan, read_plan
from convnext_cli.recipes.recipe import check_settings, describe_settings
from convnext_cli.recipes.tables import load_tables

MODELS = list(load_catalog().values())


def plan_for(name: str, images: int = 6000, weights: str = "auto", **flags: object) -> Plan:
    model, tag = find_model(name)
    given = {key: Choice(value=value, source="flag") for key, value in flags.items()}
    return make_plan(model, tag, images=images, weights=weights, given=given)


def test_the_specifications_rows_for_6000_images_and_v2_tiny() -> None:
    chosen = plan_for("convnextv2_tiny").settings
    assert (chosen["lr"].value, chosen["lr"].source) == (2e-4, "specification 3.7")
    assert (chosen["epochs"].value, chosen["epochs"].source) == (150, "specification 5, small")
    assert (chosen["warmup_epochs"].value, chosen["drop_path"].value) == (10, 0.1)
    assert (chosen["mixup"].value, chosen["cutmix"].value, chosen["label_smoothing"].value) == (0.0, 0.0, 0.05)
    assert (chosen["weight_decay"].value, chosen["batch_size"].value) == (0.05, 128)


def test_lr_scales_with_the_batch_unless_given() -> None:
    assert plan_for("convnextv2_tiny", batch_size=32).recipe.lr == pytest.approx(5e-5)
    assert plan_for("convnextv2_tiny", batch_size=32, lr=1e-3).recipe.lr == 1e-3
    assert plan_for("convnextv2_tiny", batch_size=32, lr=1e-3).settings["lr"].source == "flag"


def test_random_weights_get_a_larger_rate_and_say_so() -> None:
    chosen = plan_for("convnext_atto", weights="none").settings["lr"]
    assert chosen.value == 1e-3
    assert "random weights" in chosen.reason


def test_a_short_run_gets_a_small_batch_and_a_short_warmup() -> None:
    recipe = plan_for("convnext_atto", images=200, epochs=5).recipe
    assert recipe.batch_size == 16
    assert recipe.warmup_epochs == 0.5
    assert plan_for("convnext_atto", epochs=5, warmup_epochs=3.0).recipe.warmup_epochs == 3.0


def test_the_plan_file_repeats_the_plan(tmp_path: Path) -> None:
    plan = plan_for("convnext_small", lr=3e-5, amp="no")
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    model, weights, values = read_plan(tmp_path / "plan.toml")
    assert (model, weights) == (plan.model, plan.weights)
    assert values == {name: choice.value for name, choice in plan.settings.items()}


def test_all_problems_of_a_plan_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("[settings]\nlearning_rate = 1\nepochs = 0\nlr = 'fast'\namp = 'fp8'\nbatch_size = 2.5\n")
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    for words in (
        "learning_rate is not a setting",
        "epochs = 0 must be at least 1",
        "lr = 'fast'",
        "amp = 'fp8'",
        "batch_size = 2.5",
    ):
        assert words in str(caught.value)
    path.write_text("modle = 'convnext_tiny'")
    with pytest.raises(UsageError, match="Did you mean model"):
        read_plan(path)
    path.write_text("= nothing")
    with pytest.raises(UsageError, match="cannot read the plan"):
        read_plan(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("epochs", 0),
        ("drop_path", 1.0),
        ("hflip", 1.5),
    ],
)
def test_values_out_of_bounds_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        check_settings({name: value})


@given(
    st.sampled_from(MODELS),
    st.integers(50, 5_000_000),
    st.floats(2, 160),
    st.sampled_from([None, 8, 32, 128, 1024]),
)
@settings(deadline=None, max_examples=300)
def test_every_setting_is_in_its_tables_range_or_flagged(
    model: Architecture, images: int, vram: float, batch: int | None
) -> None:
    given = {} if batch is None else {"batch_size": Choice(value=batch, source="flag")}
    memory = round(vram * GIB)
    plan = make_plan(model, model.default_tag, images=images, memory=memory, given=given)
    tables = load_tables()
    rows = {row.source: row for row in (tables.model_row(model.parsed), tables.regime_for(images))}
    assert list(plan.settings) == list(describe_settings())
    for name, choice in plan.settings.items():
        if choice.source in rows and "scaled" not in choice.reason:
            low, high = rows[choice.source].ranges[name]
            assert low <= choice.value <= high, name
        else:
            assert choice.reason or choice.source in ("flag", "default") or "scaled" in choice.reason, name
    more = make_plan(model, model.default_tag, images=images, memory=2 * memory, given=given)
    assert more.recipe.micro_batch_size >= plan.recipe.micro_batch_size
    assert more.recipe.batch_size == plan.recipe.batch_size


def test_regimes_between_the_specifications_ones() -> None:
    tables = load_tables()
    sizes = (1, 6_000, 20_000, 31_000, 32_000, 200_000, 447_000, 448_000, 5_000_000)
    names = [tables.regime_for(size).name for size in sizes]
    assert names == ["small"] * 4 + ["medium"] * 3 + ["large"] * 2


def test_every_model_has_a_row_and_every_candidate_exists() -> None:
    tables = load_tables()
    for model in MODELS:
        assert tables.model_row(model.parsed).ranges.keys() >= {"lr", "weight_decay", "drop_path", "epochs"}
    for regime in tables.regimes:
        assert set(regime.candidates) <= set(load_catalog())


def test_memory_grows_with_images_and_area() -> None:
    model, _ = find_model("convnext_tiny")
    one, two = training_bytes(model, 1, 224), training_bytes(model, 2, 224)
    assert 100 * 2**20 < two - one < 150 * 2**20  # 104 MiB kept per image, and a share of workspace
    assert training_bytes(model, 1, 448) - training_bytes(model, 0, 448) == pytest.approx(4 * (two - one), rel=0.01)
    assert largest_micro_batch(model, 224, 4 * GIB, 128) == 16
    assert largest_micro_batch(model, 224, GIB // 4, 128) == 0
