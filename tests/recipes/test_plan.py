import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_cli.errors import UsageError
from convnext_cli.files import write_text
from convnext_cli.models.catalog import Architecture, find_model, load_catalog, load_ranking
from convnext_cli.recipes.costs import GIB, describe_seconds, largest_micro_batch, training_bytes, training_seconds
from convnext_cli.recipes.machine import machine_with
from convnext_cli.recipes.plan import Plan, carry_over, make_plan, read_choices, read_plan, read_reasons
from convnext_cli.recipes.recipe import RECIPES, check_settings, describe_settings
from convnext_cli.recipes.rules import Choice
from convnext_cli.recipes.tables import (
    AUGMENTATION_SETTINGS,
    convert_layer_decay,
    load_augmentations,
    load_measured,
    load_tables,
    published_row,
)

MODELS = list(load_catalog().values())


def plan_for(
    name: str, images: int = 6000, weights: str = "auto", recipe: str = "specification", **flags: object
) -> Plan:
    model, tag = find_model(name)
    given = {key: Choice(value=value, source="flag") for key, value in flags.items()}
    return make_plan(model, tag, images=images, weights=weights, recipe=recipe, given=given)


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


def test_the_measured_recipe_has_its_own_rate_for_the_weights_in_the_package_alone() -> None:
    measured = load_measured()
    own = plan_for("convnext_zepto_rms.builtin", recipe="measured", batch_size=measured.base_batch).settings["lr"]
    assert (own.value, own.source) == (measured.values["lr"], "measured")
    fourfold = plan_for("convnext_zepto_rms.builtin", recipe="measured", batch_size=4 * measured.base_batch)
    assert fourfold.recipe.lr == pytest.approx(2 * own.value), "the square root of the batch"
    other = plan_for("convnextv2_tiny", recipe="measured", batch_size=32).settings["lr"]
    assert (other.value, other.source) == (1e-4, "specification 3.7")
    assert "nothing was measured for this model" in other.reason
    decay = plan_for("convnextv2_tiny", recipe="measured").settings["layer_decay"]
    assert (decay.value, decay.source.split()[0]) == (0.9, "published")


def test_random_weights_get_a_larger_rate_and_say_so() -> None:
    chosen = plan_for("convnext_atto", weights="none").settings["lr"]
    assert chosen.value == 1e-3
    assert "random weights" in chosen.reason
    measured = plan_for("convnext_atto", weights="none", recipe="measured").recipe
    assert (measured.lr, measured.freeze_epochs, measured.layer_decay) == (1e-3, 0, 1.0)


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


@pytest.mark.parametrize(
    "name",
    [
        "leave out \U0001f600.csv",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467.csv",
        "a\\b\"c'",
        "tab\tline\nreturn\r\x7f\x1b\x01",
        "\u2028\u202e\x85",
    ],
)
def test_the_plan_file_holds_any_text(tmp_path: Path, name: str) -> None:
    plan = plan_for("convnext_atto", weights=name, exclude=name, group_from=f"({name[0]}+)")
    write_text(tmp_path / "plan.toml", plan.to_toml())
    _, weights, values = read_plan(tmp_path / "plan.toml")
    assert (weights, values["exclude"], values["group_from"]) == (name, name, f"({name[0]}+)")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@settings(max_examples=50)
def test_the_plan_file_holds_all_of_unicode(name: str) -> None:
    assert tomllib.loads(plan_for("convnext_atto", exclude=name).to_toml())["settings"]["exclude"] == name


@pytest.mark.parametrize("name", ["\udcff.csv", "a\0b", ""])
def test_a_name_that_no_plan_can_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"exclude = .* must be Unicode text"):
        plan_for("convnext_atto", exclude=name)
    with pytest.raises(UsageError, match=r"weights = .* is not Unicode text"):
        plan_for("convnext_atto", weights="\udcff.pth").to_toml()


def test_a_plan_file_keeps_sources_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan = plan_for("convnext_small", epochs=4, exclude="of/\U0001f600.txt")
    path.write_text(plan.to_toml())
    choices = read_choices(path)
    flags = {"epochs", "exclude"}
    assert {name: choices[name] for name in choices if name not in flags} == {
        name: choice for name, choice in plan.settings.items() if name not in flags
    }
    assert choices["epochs"] == Choice(value=4, source="plan", reason="a flag of the command that made the plan")
    assert read_plan(path)[2]["exclude"] == "of/\U0001f600.txt"
    again = make_plan(*find_model(plan.model), images=6000, given=choices)
    assert {name: again.settings[name] for name in choices} == choices
    assert read_reasons(path)["image_size"] == "rule (the input size of in12k_ft_in1k)"


def test_an_edited_value_loses_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_for("convnext_small").to_toml().replace("\nweight_decay = 0.05\n", "\nweight_decay = 0.1\n"))
    edited = read_choices(path)["weight_decay"]
    assert edited == Choice(value=0.1, source="plan", reason="edited; it was 0.05 (from specification 3.3)")


def test_a_flag_replaces_the_reasons_that_it_contradicts(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan = plan_for("convnext_small")
    path.write_text(plan.to_toml())
    batch = {"batch_size": Choice(value=32, source="flag")}
    merged = carry_over(read_choices(path), batch, same_model=True)
    assert merged["lr"] == Choice(value=plan.recipe.lr, source="plan", reason="chosen for batch_size 128")
    assert merged["weight_decay"].source == "specification 3.3"
    same = carry_over(read_choices(path), {"batch_size": Choice(value=128, source="flag")}, same_model=True)
    assert same["lr"].source == plan.settings["lr"].source
    other = carry_over(read_choices(path), {}, same_model=False)
    assert other["image_size"].reason == "chosen for another model"


def test_plans_of_version_0_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        'model = "test_convnext"\nweights = "auto"\n\n[settings]\n'
        "# Passes over the training images. From specification 5, small (3.2 has 300; a note (here)).\nepochs = 3\n"
        "# Training images are turned by at most this, either way; 0 is off From augmentation light.\nrotation = 0.0\n"
        "lr = 0.001\n"
    )
    assert {name: choice.value for name, choice in read_choices(path).items()} == read_plan(path)[2]
    assert {choice.source for choice in read_choices(path).values()} == {"plan"}
    assert read_reasons(path) == {
        "epochs": "specification 5, small (3.2 has 300; a note (here))",
        "rotation": "augmentation light",
    }


def test_all_problems_of_a_plan_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("[settings]\nlearning_rate = 1\nepochs = -1\nlr = 'fast'\namp = 'fp8'\nbatch_size = 2.5\n")
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    for words in (
        "learning_rate is not a setting",
        "epochs = -1 must be at least 0",
        "lr = 'fast'",
        "amp = 'fp8'",
        "batch_size = 2.5",
    ):
        assert words in str(caught.value)
    path.write_text("modle = 'convnext_tiny'")
    with pytest.raises(UsageError, match="Did you mean model"):
        read_plan(path)
    path.write_text("model = 5\nsettings = 3")
    with pytest.raises(UsageError, match="model must be a text; settings must be a table"):
        read_plan(path)
    path.write_text("[reasons]\nlr = 3\nepochs = {value = 1, source = 2, reason = ''}")
    with pytest.raises(UsageError, match=r"reasons\.lr must have value.*reasons\.epochs must"):
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
        ("epochs", -1),
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
    st.sampled_from(RECIPES),
)
@settings(deadline=None, max_examples=400)
def test_every_setting_is_in_its_tables_range_or_flagged(
    model: Architecture, images: int, vram: float, batch: int | None, recipe: str
) -> None:
    given = {} if batch is None else {"batch_size": Choice(value=batch, source="flag")}
    asked = {"images": images, "recipe": recipe, "given": given}
    plan = make_plan(model, model.default_tag, machine=machine_with(vram), **asked)  # type: ignore[arg-type]
    tables, published = load_tables(), published_row(model, model.default_tag)
    rows = {row.source: row for row in (tables.model_row(model.parsed), tables.regime_for(images), published)}
    assert list(plan.settings) == list(describe_settings())
    for name, choice in plan.settings.items():
        if choice.source in rows and "scaled" not in choice.reason:
            low, high = rows[choice.source].ranges[name]
            assert low <= choice.value <= high, name
        elif choice.source == "measured":
            assert choice.value == load_measured().values[name], name
        else:
            is_off = choice.source.startswith("augmentation") and choice.value == 0
            assert choice.reason or choice.source in ("flag", "default") or is_off, name
    more = make_plan(model, model.default_tag, machine=machine_with(2 * vram), **asked)  # type: ignore[arg-type]
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


def test_checkpointing_is_planned_where_the_memory_would_leave_next_to_nothing() -> None:
    def chosen(vram: float, **flags: object) -> dict[str, Choice]:
        model, tag = find_model("convnext_large")
        given = {key: Choice(value=value, source="flag") for key, value in flags.items()}
        return dict(make_plan(model, tag, images=6000, machine=machine_with(vram), given=given).settings)

    roomy, tight = chosen(16), chosen(6)
    assert (roomy["grad_checkpointing"].value, roomy["micro_batch_size"].value) == (False, 16)
    assert (tight["grad_checkpointing"].value, tight["grad_checkpointing"].source) == (True, "rule")
    assert tight["micro_batch_size"].value == 8
    assert "4 images would fit" in tight["grad_checkpointing"].reason
    assert chosen(6, grad_checkpointing=False)["micro_batch_size"].value == 4, "the user wins"
    model, _ = find_model("convnext_large")
    once, twice = (
        training_seconds(model, 100, 224, is_gpu=True, cores=1, grad_checkpointing=on) for on in (False, True)
    )
    assert twice == pytest.approx(4 / 3 * once)


def test_layer_decay_is_converted_as_timm_applies_it() -> None:
    # on 36-block nets .8 -> .925, .7 -> .882, .75 -> .904, .6 -> .836; on tiny (18 blocks) .8 -> .858
    converted = [convert_layer_decay(decay, "group", 36) for decay in (0.8, 0.7, 0.75, 0.6)]
    assert converted == pytest.approx([0.925, 0.882, 0.904, 0.836], abs=5e-4)
    assert convert_layer_decay(0.8, "group", 18) == pytest.approx(0.858, abs=5e-4)
    assert convert_layer_decay(0.9, "single", 18) == 0.9


def test_the_published_recipe() -> None:
    def published(name: str, **flags: object) -> Plan:
        model, tag = find_model(name)
        given = {key: Choice(value=value, source="flag") for key, value in flags.items()}
        return make_plan(model, tag, images=6000, recipe="published", given=given)

    base = published("convnext_base.fb_in22k", batch_size=512).recipe
    assert (base.lr, base.weight_decay, base.epochs, base.warmup_epochs) == (5e-5, 1e-8, 30, 0)
    assert (base.drop_path, base.label_smoothing, base.mixup, base.cutmix) == (0.2, 0.1, 0.0, 0.0)
    assert base.layer_decay == pytest.approx(0.925, abs=5e-4)
    assert published("convnext_base.fb_in22k").recipe.lr == pytest.approx(1.25e-5)
    tiny = published("convnextv2_tiny.fcmae", batch_size=1024).recipe
    assert (tiny.lr, tiny.layer_decay, tiny.epochs, tiny.mixup) == (3.2e-3, 0.9, 300, 0.8)
    assert published("convnextv2_tiny").recipe.epochs == 90
    assert (published("convnextv2_tiny").recipe.ema_decay, published("convnext_tiny").recipe.ema_decay) == (0.9999, 0.0)
    assert published("convnext_tiny").recipe.head_init_scale == 0.001
    assert "not published" in published("convnextv2_pico").settings["lr"].source
    for model in MODELS:  # every model with every tag has a row
        for tag in (*model.tags, None):
            make_plan(model, tag, images=6000, recipe="published", given={})


def test_conflicts_inside_the_specification_are_resolved_by_rule() -> None:
    # 300 epochs and 20 of warm-up by model (3.2), 100 to 150 and 5 to 10 by data-set size (5): the data set bounds
    tiny = plan_for("convnext_tiny").settings
    assert (tiny["epochs"].value, tiny["warmup_epochs"].value) == (150, 10)
    assert "specification 3.2 has 300" in tiny["epochs"].reason
    # lr 3e-4 by model, 1e-4 to 2e-4 by data-set size: likewise
    assert tiny["lr"].value == 2e-4
    # mixup .8 and cutmix 1 by model (3.3), none for small data sets (5): likewise
    small = plan_for("convnext_small").settings
    assert (small["mixup"].value, small["cutmix"].value, small["drop_path"].value) == (0.0, 0.0, 0.1)
    # zepto_rms stands in tier 4 by name and in tier 5 as a variant: the name counts
    assert load_ranking()[1]["convnext_zepto_rms"].tier == 4
    # "Best Choice" leads with V2 for 6,000 images, section 5 lists V1 alone: the best choice is about such data
    assert load_tables().regime_for(6000).candidates[0] == "convnextv2_tiny"
    # _rms "allows" 20% more, which nothing supports: applied, and said
    rms = plan_for("convnext_atto_rms").settings["lr"]
    assert rms.value == pytest.approx(2.4e-4)
    assert "no published source supports" in rms.reason


def test_a_preset_gives_its_settings_values_and_reasons() -> None:
    model, tag = find_model("convnext_tiny")
    for name, row in load_augmentations().items():
        chosen = make_plan(model, tag, images=6000, augment=name, given={}).settings
        for setting, (value, reason) in row.items():
            assert chosen[setting] == Choice(value=value, source=f"augmentation {name}", reason=reason)
            assert value == 0 or reason, f"{name}: {setting}"
        check_settings({setting: value for setting, (value, _) in row.items()})
    usual = make_plan(model, tag, images=6000, given={}).recipe
    assert [getattr(usual, setting) for setting in AUGMENTATION_SETTINGS] == [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_flag_wins_over_a_preset_and_a_preset_that_is_asked_for_over_a_plan_file() -> None:
    model, tag = find_model("convnext_tiny")
    planned = {"rotation": 5.0, "hflip": 0.5, "epochs": 3}
    given = {name: Choice(value=value, source="plan") for name, value in planned.items()}
    given["jitter"] = Choice(value=0.3, source="flag")

    def chosen(augment: str | None) -> dict[str, tuple[object, str]]:
        settings = make_plan(model, tag, images=6000, augment=augment, given=given).settings
        return {
            name: (settings[name].value, settings[name].source) for name in ("rotation", "hflip", "epochs", "jitter")
        }

    kept = {"epochs": (3, "plan"), "jitter": (0.3, "flag")}
    assert chosen(None) == {"rotation": (5.0, "plan"), "hflip": (0.5, "plan"), **kept}
    medical = "augmentation medical"
    assert chosen("medical") == {"rotation": (10.0, medical), "hflip": (0.0, medical), **kept}


def test_time_grows_with_images_area_and_grn() -> None:
    tiny, _ = find_model("convnext_tiny")
    v2, _ = find_model("convnextv2_tiny")
    one = training_seconds(tiny, 1000, 224, is_gpu=True, cores=1)
    assert training_seconds(tiny, 2000, 448, is_gpu=True, cores=1) == pytest.approx(8 * one)
    assert training_seconds(v2, 1000, 224, is_gpu=True, cores=1) == pytest.approx(2 * one)
    assert training_seconds(tiny, 1000, 224, is_gpu=False, cores=2) > 100 * one
    assert [describe_seconds(s) for s in (40, 720, 12_600, 5e5)] == ["40 s", "12 min", "3.5 h", "6 days"]


def test_random_weights_keep_a_tag_that_is_not_the_default() -> None:
    name = "convnextv2_nano.fcmae_ft_in22k_in1k_384"  # it says how images are prepared
    assert plan_for(name, weights="none").model == name
    assert plan_for("convnextv2_nano", weights="none").model == "convnextv2_nano"
