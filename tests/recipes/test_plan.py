import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_cli.errors import UsageError
from convnext_cli.files import write_text
from convnext_cli.machine import GIB, Machine, make_gpu_machine
from convnext_cli.models.catalog import Architecture, find_model, load_catalog, load_ranking
from convnext_cli.recipes import tables
from convnext_cli.recipes.costs import (
    AUDIT_DECODINGS,
    AUDIT_SECONDS,
    AUTOTUNE_SECONDS,
    BANK_IMAGES,
    EXPORT_SECONDS,
    FORWARD_FRACTION,
    IMAGE_SECONDS,
    PIXEL_SECONDS,
    START_SECONDS,
    RunTime,
    StepMemory,
    Workload,
    describe_seconds,
    estimate_epoch,
    estimate_time,
    find_gpu_speed,
    largest_micro_batch,
    training_bytes,
    training_seconds,
)
from convnext_cli.recipes.fingerprint import DataCounts
from convnext_cli.recipes.plan import (
    Plan,
    PlanInputs,
    make_plan,
    override_choices,
    read_plan,
)
from convnext_cli.recipes.rules import choose_image_size, explain_lr
from convnext_cli.recipes.settings import (
    RECIPES,
    Choice,
    check_combinations,
    check_settings,
    declare_settings,
    default_settings,
)
from convnext_cli.recipes.tables import (
    AUGMENTATION_SETTINGS,
    convert_layer_decay,
    load_augmentations,
    load_measured,
    load_tables,
    published_row,
)

MODELS = list(load_catalog().values())
GPU = make_gpu_machine(24)


def inputs_for(name: str, images: int = 6000, **fields: Any) -> PlanInputs:
    model, tag = find_model(name)
    counts = DataCounts(images=images, train=images, val=0)
    return PlanInputs(model=model, tag=tag, counts=counts, **fields)


def make_flags(values: Mapping[str, object]) -> dict[str, Choice]:
    return {name: Choice(value=value, source="flag") for name, value in values.items()}


def plan_for(
    name: str, images: int = 6000, weights: str = "auto", recipe: str = "specification", **flags: object
) -> Plan:
    return make_plan(inputs_for(name, images, weights=weights, recipe=recipe, choices=make_flags(flags)))


def test_plan_follows_the_specification_rows_of_model_and_data_set() -> None:
    chosen = plan_for("convnextv2_tiny").choices
    assert (chosen["lr"].value, chosen["lr"].source) == (2e-4, "specification 3.7")
    assert (chosen["epochs"].value, chosen["epochs"].source) == (150, "specification 5, small")
    assert (chosen["warmup_epochs"].value, chosen["drop_path"].value) == (10, 0.1)
    assert (chosen["mixup"].value, chosen["cutmix"].value, chosen["label_smoothing"].value) == (0.0, 0.0, 0.05)
    assert (chosen["weight_decay"].value, chosen["batch_size"].value) == (0.05, 128)


def test_lr_scales_with_the_batch_size_unless_set_by_a_flag() -> None:
    note = plan_for("convnextv2_tiny").choices["lr"].reason
    scaled = plan_for("convnextv2_tiny", batch_size=32).choices["lr"]
    assert (scaled.value, scaled.reason) == (5e-5, f"0.0002 at batch 128, scaled linearly to 32; {note}")
    assert plan_for("convnextv2_tiny", batch_size=32, lr=1e-3).settings.lr == 1e-3
    assert plan_for("convnextv2_tiny", batch_size=32, lr=1e-3).choices["lr"].source == "flag"


def test_measured_recipe_has_a_measured_lr_for_the_builtin_weights_only() -> None:
    measured = load_measured()
    own = plan_for("convnext_zepto_rms.builtin", recipe="measured", batch_size=measured.base_batch).choices["lr"]
    assert (own.value, own.source) == (measured.values["lr"], "measured")
    fourfold = plan_for("convnext_zepto_rms.builtin", recipe="measured", batch_size=4 * measured.base_batch)
    assert fourfold.settings.lr == pytest.approx(2 * own.value), "the square root of the batch"


def test_the_authors_lr_is_not_scaled_down_for_small_batches() -> None:
    authors = "the specification's value; the authors have 5e-05 at batch 512, 1.25e-05 at 128"
    for batch, lr, scaling in (
        (4, 1e-4, "0.0002 at batch 16, scaled with the square root to 4; "),
        (16, 2e-4, "the value for batch 128, not scaled down: short runs were more accurate with it; "),
        (32, 2e-4, "the value for batch 128, not scaled down: short runs were more accurate with it; "),
        (128, 2e-4, ""),
        (512, 4e-4, "0.0002 at batch 128, scaled with the square root to 512; "),
    ):
        choice = plan_for("convnextv2_tiny", recipe="measured", batch_size=batch).choices["lr"]
        assert (choice.value, choice.source, choice.reason) == (lr, "specification 3.7", scaling + authors)


def test_layer_decay_of_weights_that_were_not_measured_is_the_authors() -> None:
    decay = plan_for("convnextv2_tiny", recipe="measured").choices["layer_decay"]
    assert (decay.value, decay.source.split()[0]) == (0.9, "published")


def test_small_models_get_a_higher_lr_from_random_weights() -> None:
    plan = plan_for("convnext_atto", weights="none", recipe="measured")
    assert "random weights" in plan.choices["lr"].reason
    measured = plan.settings
    assert (measured.lr, measured.freeze_epochs, measured.layer_decay) == (1e-3, 0, 1.0)


def test_short_runs_get_a_small_batch_and_a_short_warmup() -> None:
    recipe = plan_for("convnext_atto", images=200, epochs=5).settings
    assert recipe.batch_size == 16
    assert recipe.warmup_epochs == 0.5
    assert plan_for("convnext_atto", epochs=5, warmup_epochs=3.0).settings.warmup_epochs == 3.0


def test_plan_file_keeps_model_weights_and_values(tmp_path: Path) -> None:
    plan = plan_for("convnext_small", lr=3e-5, amp="no")
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    read = read_plan(tmp_path / "plan.toml")
    assert (read.model, read.weights) == (plan.model, plan.weights)
    assert read.settings == {name: choice.value for name, choice in plan.choices.items()}


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
def test_plan_file_keeps_unusual_text(tmp_path: Path, name: str) -> None:
    plan = plan_for("convnext_atto", weights=name, exclude=name, group_from=f"({name[0]}+)")
    write_text(tmp_path / "plan.toml", plan.to_toml())
    read = read_plan(tmp_path / "plan.toml")
    assert (read.weights, read.settings["exclude"], read.settings["group_from"]) == (name, name, f"({name[0]}+)")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@settings(max_examples=50)
def test_plan_file_keeps_all_of_unicode(name: str) -> None:
    assert tomllib.loads(plan_for("convnext_atto", exclude=name).to_toml())["settings"]["exclude"] == name


@pytest.mark.parametrize("name", ["\udcff.csv", "a\0b"])
def test_text_that_is_not_unicode_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"exclude = .* must be Unicode text"):
        plan_for("convnext_atto", exclude=name)
    with pytest.raises(UsageError, match=r"weights = .* is not Unicode text"):
        plan_for("convnext_atto", weights="\udcff.pth").to_toml()


def test_empty_text_is_called_empty() -> None:
    with pytest.raises(UsageError, match="exclude is empty"):
        plan_for("convnext_atto", exclude="")


def test_plan_file_keeps_sources_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan = plan_for("convnext_small", epochs=4, exclude="of/\U0001f600.txt")
    path.write_text(plan.to_toml())
    assert read_plan(path).choices == plan.choices
    choices = override_choices(plan.choices, {}, same_model=True)
    flags = {"epochs", "exclude"}
    assert {name: choices[name] for name in choices if name not in flags} == {
        name: choice for name, choice in plan.choices.items() if name not in flags
    }
    assert choices["epochs"] == Choice(value=4, source="plan", reason="a flag of the command that made the plan")
    assert read_plan(path).settings["exclude"] == "of/\U0001f600.txt"
    again = make_plan(inputs_for(plan.model, choices=choices))
    assert {name: again.choices[name] for name in choices} == choices
    assert ("image_size", "224", "rule (the input size of the weights in12k_ft_in1k)") in read_plan(path).rows
    assert ("epochs", "4", "flag") in read_plan(path).rows, "for a run's own plan, in its report"


def test_edited_values_lose_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan_for("convnext_small").to_toml().replace("\nweight_decay = 0.05\n", "\nweight_decay = 0.1\n"))
    edited = read_plan(path).choices["weight_decay"]
    assert edited == Choice(value=0.1, source="plan", reason="edited; it was 0.05 (from specification 3.3)")


def test_flags_replace_the_reasons_that_they_contradict(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan = plan_for("convnext_small")
    path.write_text(plan.to_toml())
    batch = {"batch_size": Choice(value=32, source="flag")}
    merged = override_choices(read_plan(path).choices, batch, same_model=True)
    assert merged["lr"] == Choice(value=plan.settings.lr, source="plan", reason="chosen for batch_size 128")
    assert merged["weight_decay"].source == "specification 3.3"
    same = override_choices(read_plan(path).choices, {"batch_size": Choice(value=128, source="flag")}, same_model=True)
    assert same["lr"].source == plan.choices["lr"].source
    other = override_choices(read_plan(path).choices, {}, same_model=False)
    assert other["image_size"].reason == "chosen for another model"


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "cp1252"])
def test_plan_file_is_read_in_the_encoding_of_an_editor(codec: str, tmp_path: Path) -> None:
    text = 'model = "convnext_tiny"\r\nweights = "Büro.pth"\r\n[settings]\r\nepochs = 3\r\n'
    (tmp_path / "plan.toml").write_bytes(text.encode(codec))
    plan = read_plan(tmp_path / "plan.toml")
    assert (plan.weights, plan.settings) == ("Büro.pth", {"epochs": 3})


@pytest.mark.parametrize("text", ["a = " + "[" * 5000 + "]" * 5000, "a = \0"])
def test_plan_file_that_is_no_toml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=r"the plan .*plan\.toml"):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize(
    "text", ["[settings]\nepochs = " + "[" * 5000 + "]" * 5000, "settings.lr" + ".a" * 5000 + " = 1"]
)
def test_plan_file_that_is_nested_too_deeply_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=r"cannot read the plan .*plan\.toml: its values are nested too deeply"):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize("text", ["", "# model = 'convnext_tiny'\n", "[settings]\n", "[settings]\n[reasons]\n"])
def test_plan_file_that_sets_nothing_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=r"plan\.toml is empty: it has no model, weights, teacher or setting"):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize("key", ["model", "weights", "teacher"])
def test_empty_name_in_a_plan_file_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(f'{key} = ""\n')
    with pytest.raises(UsageError, match=f"{key} is empty"):  # no weights are `none`, not the default ones
        read_plan(tmp_path / "plan.toml")


def test_all_problems_of_a_plan_file_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("[settings]\nlearning_rate = 1\nepochs = -1\nlr = 'fast'\namp = 'fp8'\nbatch_size = 2.5\n")
    with pytest.raises(UsageError) as caught:
        read_plan(path)
    for words in (
        "learning_rate is not a setting",
        "epochs = -1 is below 0",
        "lr = 'fast'",
        "amp = 'fp8'",
        "batch_size = 2.5",
    ):
        assert words in str(caught.value)
    assert ".;" not in str(caught.value)
    path.write_text("modle = 'convnext_tiny'")
    with pytest.raises(UsageError, match="Did you mean model"):
        read_plan(path)
    path.write_text("model = 5\nsettings = 3")
    with pytest.raises(UsageError, match="model must be a text; settings must be a table"):
        read_plan(path)
    path.write_text("[reasons]\nlr = 3\nepochs = {value = 1, source = 2, reason = ''}")
    with pytest.raises(UsageError, match=r"reasons\.lr must have value.*reasons\.epochs must"):
        read_plan(path)
    path.write_text("[settings]\nepochs = 4\n[reasons]\nepochs = 4")  # as an editor's "replace all" leaves it
    assert read_plan(path).choices == {"epochs": Choice(value=4, source="plan")}
    path.write_text("= nothing")
    with pytest.raises(UsageError, match="cannot read the plan"):
        read_plan(path)
    with pytest.raises(UsageError, match=f"cannot read the plan .*Give {path}"):
        read_plan(path.parent)  # a run's folder


def test_every_numeric_setting_has_bounds() -> None:
    for name, declared in declare_settings().items():
        option = declared.option
        assert declared.kind not in (int, float) or (option.low is not None and option.high is not None), name


@pytest.mark.parametrize("setting", ["lr", "warmup_epochs", "epochs", "batch_size", "weight_decay", "mixup"])
def test_huge_numbers_are_refused(setting: str) -> None:
    huge = 10**30 if setting in ("epochs", "batch_size") else 1e308
    with pytest.raises(UsageError, match=f"^{setting} = .* is (above|not below) "):
        check_settings({setting: huge})


def test_min_lr_above_lr_is_refused() -> None:
    with pytest.raises(UsageError, match=r"min_lr 0\.1 is above lr 0\.001"):
        plan_for("convnext_tiny", images=1000, lr=1e-3, min_lr=0.1)


def test_default_min_lr_is_below_a_small_lr() -> None:
    assert plan_for("convnext_tiny", images=1000, lr=1e-8, recipe="measured").settings.min_lr == 1e-10


def test_zero_epochs_leave_the_head_only_phase_of_the_recipe() -> None:
    assert plan_for("convnext_tiny", recipe="measured", epochs=0).settings.freeze_epochs > 0
    with pytest.raises(UsageError, match="0 epochs train nothing"):
        plan_for("convnext_tiny", recipe="measured", epochs=0, freeze_epochs=0)


def test_a_setting_that_every_recipe_chooses_shows_no_default() -> None:
    """`--help` would state a value that a plan does not have."""
    choices = plan_for("convnext_tiny", recipe="measured").choices
    chosen = {name for name in choices if not choices[name].source.startswith(("default", "augmentation"))}
    assert not chosen & default_settings().keys()


def test_fold_number_above_the_number_of_folds_is_refused() -> None:
    with pytest.raises(UsageError, match="one fold leaves no images"):
        check_combinations(default_settings() | {"folds": 1})
    with pytest.raises(UsageError, match="fold 3 of 2 folds"):
        check_combinations(default_settings() | {"folds": 2, "fold": 3})


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
@settings(max_examples=400)
def test_every_setting_is_in_the_range_of_its_source(
    model: Architecture, images: int, vram: float, batch: int | None, recipe: str
) -> None:
    choices = make_flags({} if batch is None else {"batch_size": batch})
    inputs = inputs_for(model.name, images, recipe=recipe, choices=choices, machine=make_gpu_machine(vram))
    plan = make_plan(inputs)
    tables, published = load_tables(), published_row(model, model.default_tag)
    rows = {row.source: row for row in (tables.model_row(model.parsed), tables.regime_for(images), published)}
    assert list(plan.choices) == list(declare_settings())
    for name, choice in plan.choices.items():
        if choice.source in rows and "scaled" not in choice.reason:
            low, high = rows[choice.source].ranges[name]
            assert low <= choice.value <= high, name
        elif choice.source == "measured":
            assert choice.value == load_measured().values[name], name
        else:
            is_off = choice.source.startswith("augmentation") and choice.value == 0
            assert choice.reason or choice.source in ("flag", "default") or is_off, name
    more = make_plan(replace(inputs, machine=make_gpu_machine(2 * vram)))
    assert more.settings.micro_batch_size >= plan.settings.micro_batch_size
    assert more.settings.batch_size == plan.settings.batch_size


def test_sizes_between_two_regimes_take_the_nearer_one() -> None:
    tables = load_tables()
    sizes = (1, 6_000, 20_000, 31_000, 32_000, 200_000, 447_000, 448_000, 5_000_000)
    names = [tables.regime_for(size).name for size in sizes]
    assert names == ["small"] * 4 + ["medium"] * 3 + ["large"] * 2


def test_every_model_has_a_row_and_every_candidate_exists() -> None:
    tables = load_tables()
    for model in MODELS:
        assert tables.model_row(model.parsed).ranges.keys() >= {"lr", "weight_decay", "drop_path", "epochs"}
    for regime in tables.regimes:
        assert {named.model for named in regime.candidates} <= set(load_catalog())


def test_memory_grows_with_images_and_area() -> None:
    model, _ = find_model("convnext_tiny")
    plain = StepMemory(size=(224, 224))
    one, two = (training_bytes(model, images, plain) for images in (1, 2))
    assert 100 * 2**20 < two - one < 150 * 2**20  # 104 MiB kept per image, and a share of workspace
    for size in ((448, 448), (224, 896)):
        large = replace(plain, size=size)
        image = training_bytes(model, 1, large) - training_bytes(model, 0, large)
        assert image == pytest.approx(4 * (two - one), rel=0.01)
    assert largest_micro_batch(model, 4 * GIB, 128, plain) == 16
    assert largest_micro_batch(model, GIB // 4, 128, plain) == 0


def test_gradient_checkpointing_is_planned_for_little_memory() -> None:
    def choices_for(vram: float, **flags: object) -> dict[str, Choice]:
        machine = make_gpu_machine(vram)
        return make_plan(inputs_for("convnext_large", machine=machine, choices=make_flags(flags))).choices

    roomy, tight = choices_for(16), choices_for(4.5)
    assert (roomy["grad_checkpointing"].value, roomy["micro_batch_size"].value) == (False, 32)
    assert (tight["grad_checkpointing"].value, tight["grad_checkpointing"].source) == (True, "rule")
    assert tight["micro_batch_size"].value == 8
    assert "the memory holds 4 images" in tight["grad_checkpointing"].reason
    assert choices_for(4.5, grad_checkpointing=False)["micro_batch_size"].value == 4, "the user wins"
    model, _ = find_model("convnext_large")
    once, twice = (training_seconds(model, 100, (224, 224), GPU, grad_checkpointing=on) for on in (False, True))
    assert twice == pytest.approx(4 / 3 * once)


def test_grouped_layer_decay_is_converted_to_timms_per_block_factor() -> None:
    # on 36-block nets .8 -> .925, .7 -> .882, .75 -> .904, .6 -> .836; on tiny (18 blocks) .8 -> .858
    converted = [convert_layer_decay(decay, "group", 36) for decay in (0.8, 0.7, 0.75, 0.6)]
    assert converted == pytest.approx([0.925, 0.882, 0.904, 0.836], abs=5e-4)
    assert convert_layer_decay(0.8, "group", 18) == pytest.approx(0.858, abs=5e-4)
    assert convert_layer_decay(0.9, "single", 18) == 0.9


def test_published_recipe_has_the_authors_values() -> None:
    def published(name: str, **flags: object) -> Plan:
        return make_plan(inputs_for(name, recipe="published", choices=make_flags(flags)))

    base = published("convnext_base.fb_in22k", batch_size=512).settings
    assert (base.lr, base.weight_decay, base.epochs, base.warmup_epochs) == (5e-5, 1e-8, 30, 0)
    assert (base.drop_path, base.label_smoothing, base.mixup, base.cutmix) == (0.2, 0.1, 0.0, 0.0)
    assert base.layer_decay == pytest.approx(0.925, abs=5e-4)
    assert published("convnext_base.fb_in22k").settings.lr == pytest.approx(1.25e-5)
    tiny = published("convnextv2_tiny.fcmae", batch_size=1024).settings
    assert (tiny.lr, tiny.layer_decay, tiny.epochs, tiny.mixup) == (3.2e-3, 0.9, 300, 0.8)
    assert published("convnextv2_tiny").settings.epochs == 90
    assert (published("convnextv2_tiny").settings.ema_decay, published("convnext_tiny").settings.ema_decay) == (
        0.9999,
        0.0,
    )
    assert published("convnext_tiny").settings.head_init_scale == 0.001
    assert "not published" in published("convnextv2_pico").choices["lr"].source
    for model in MODELS:  # every model with every tag has a row
        for tag in (*model.tags, None):
            make_plan(replace(inputs_for(model.name, recipe="published"), tag=tag))


def _value(model: str, name: str, images: int = 6000) -> object:
    return plan_for(model, images=images).choices[name].value


CONFLICTS = {
    "lr-rule": lambda: (
        [plan_for("convnextv2_tiny", batch_size=batch).settings.lr for batch in (128, 64)] == [2e-4, 1e-4]
    ),
    "model-against-data": lambda: (
        [_value("convnext_tiny", "lr"), _value("convnext_xxlarge", "lr", 100_000), _value("convnext_xlarge", "lr")],
        [_value("convnext_small", "drop_path"), _value("convnext_xxlarge", "drop_path", 100_000)],
    )
    == ([2e-4, 5e-5, 5e-5], [0.1, 0.6]),
    "epochs": lambda: [_value("convnext_tiny", name) for name in ("epochs", "warmup_epochs")] == [150, 10],
    "mixing": lambda: [
        [_value(name, setting, images) for setting in ("mixup", "cutmix")]
        for name, images in (("convnext_small", 6000), ("convnext_nano", 100_000))
    ]
    == [[0.0, 0.0], [0.8, 1.0]],
    "label-smoothing": lambda: [_value("convnext_tiny", "label_smoothing", n) for n in (6000, 100_000)] == [0.05, 0.1],
    "drop-path": lambda: _value("convnext_xlarge", "drop_path", 2_000_000) == 0.6,
    "v2-drop-path": lambda: [
        load_tables().model_row(find_model(f"convnextv2_{size}")[0].parsed).ranges["drop_path"]
        for size in ("atto", "tiny", "small", "base", "large", "huge")
    ]
    == [(0.1, 0.1), (0.1, 0.2), (0.2, 0.4), (0.3, 0.5), (0.4, 0.6), (0.6, 0.6)],
    "v2-lr": lambda: [
        load_tables().model_row(find_model(f"convnextv2_{size}")[0].parsed).ranges["lr"][0]
        for size in ("nano", "tiny", "small", "base")
    ]
    == [3e-4, 2e-4, 2e-4, 8e-5],
    "small-warmup": lambda: load_tables().models["convnext", "small"].ranges["warmup_epochs"] == (20, 20),
    "base-lr": lambda: _value("convnext_base", "lr", 100_000) == 2e-4,
    "min-lr": lambda: _value("convnextv2_tiny", "min_lr") == 2e-6,
    "jitter": lambda: [_value("convnext_tiny", name) for name in ("rand_augment", "jitter")] == [9.0, 0.0],
    "ranked-twice": lambda: load_ranking()["convnext_zepto_rms"].tier == 4,
    "v2-first": lambda: [named.why for named in load_tables().regime_for(6000).candidates][:6]
    == [*(f"Best Choice, {place}" for place in ("1st", "2nd", "3rd", "4th", "5th")), "section 5, small"],
    "base-for-small": lambda: [n.min_images for n in load_tables().regimes[0].candidates if n.model == "convnext_base"]
    == [50_000],
    "tiny-for-medical": lambda: [named.model for named in load_tables().regime_for(6000).candidates][-3:]
    == ["convnext_pico", "convnext_femto", "convnext_atto"],
    "between-sizes": lambda: [load_tables().describe_gap(n) is None for n in (20_000, 31_000, 50_000, 500_000, 10**6)]
    == [True, False, True, False, True],
    "rms-lr": lambda: _value("convnext_atto_rms", "lr") == 2.4e-4
    and "no published source supports" in plan_for("convnext_atto_rms").choices["lr"].reason,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts_of_the_specification_are_resolved_by_their_rules(name: str) -> None:
    assert CONFLICTS[name]()


def test_every_conflict_is_tested() -> None:
    text = (Path(tables.__file__).parent / "specification.toml").read_text()
    assert [conflict["id"] for conflict in tomllib.loads(text)["conflicts"]] == list(CONFLICTS)


@pytest.mark.parametrize(
    ("model", "lr"),
    [("convnext_xlarge", 5e-5), ("convnext_large", 8e-5), ("convnext_base", 1e-4), ("convnext_atto", 2e-4)],
)
def test_specification_recipe_is_followed_from_random_weights(model: str, lr: float) -> None:
    chosen = plan_for(model, weights="none", batch_size=128).choices["lr"]
    assert chosen.value == lr
    assert "fine-tune" not in chosen.reason, "a note for random weights"
    assert "4e-3 at batch 4096" in chosen.reason


def test_large_models_from_random_weights_get_the_specifications_lr() -> None:
    for recipe in ("measured", "published"):
        assert plan_for("convnext_xlarge", weights="none", recipe=recipe, batch_size=128).settings.lr == 5e-5
        assert plan_for("convnext_nano", weights="none", recipe=recipe).settings.lr == 1e-3


def test_specification_recipe_has_its_augmentation_and_min_lr() -> None:
    recipe = plan_for("convnextv2_tiny").settings
    assert (recipe.hflip, recipe.rand_augment, recipe.erasing, recipe.min_crop_area) == (0.5, 9.0, 0.25, 0.08)
    assert recipe.min_lr == pytest.approx(recipe.lr * 1e-2)
    assert plan_for("convnextv2_tiny", lr=1e-3).settings.min_lr == pytest.approx(1e-5)
    assert plan_for("convnextv2_tiny", recipe="measured").settings.min_lr == 1e-6


@pytest.mark.parametrize(
    ("name", "lr", "batch", "effect"),
    [
        ("convnext_base", 0.05, 128, "training may diverge"),
        ("convnext_base", 1.2e-4, 128, None),
        ("convnext_base", 3e-4, 512, None),
        ("convnext_base", 1e-8, 128, "it may learn very slowly"),
        ("convnextv2_tiny", 2e-3, 128, "training may diverge"),
        ("convnext_atto_rms", 4.8e-4, 128, None),
    ],
)
def test_lr_outside_the_models_range_gives_a_warning(name: str, lr: float, batch: int, effect: str | None) -> None:
    model, _ = find_model(name)
    warning = explain_lr(model, lr, batch, plan_for(name, batch_size=batch).settings.lr)
    assert bool(warning) == bool(effect)
    assert not warning or (f"outside the range for {name}" in warning and f": {effect}. " in warning)


@pytest.mark.parametrize(
    ("median_side", "size"), [(0, 224), (8, 128), (100, 128), (128, 128), (150, 160), (200, 224), (1000, 224)]
)
def test_small_images_get_a_small_input_size(median_side: int, size: int) -> None:
    _, tag = find_model("convnextv2_tiny")
    chosen = choose_image_size(tag, median_side)
    assert chosen.value == size
    enlarging = f"enlarging images of {median_side} px beyond {size} px adds no detail"
    assert (enlarging in chosen.reason) == (size < 224)
    _, small = find_model("convnext_zepto_rms.builtin")
    assert choose_image_size(small, median_side).value == 96, "never above the size of the weights"


def test_augmentation_presets_set_values_and_reasons() -> None:
    for name, row in load_augmentations().items():
        chosen = make_plan(inputs_for("convnext_tiny", augment=name)).choices
        for setting, (value, reason) in row.items():
            assert chosen[setting] == Choice(value=value, source=f"augmentation {name}", reason=reason)
            assert value == 0 or reason, f"{name}: {setting}"
        check_settings({setting: value for setting, (value, _) in row.items()})
    usual = make_plan(inputs_for("convnext_tiny")).settings
    assert [getattr(usual, setting) for setting in AUGMENTATION_SETTINGS] == [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_flags_override_presets_and_presets_override_plan_files() -> None:
    planned = {"rotation": 5.0, "hflip": 0.5, "epochs": 3}
    choices = {name: Choice(value=value, source="plan") for name, value in planned.items()}
    choices["jitter"] = Choice(value=0.3, source="flag")

    def chosen(augment: str | None) -> dict[str, tuple[object, str]]:
        settings = make_plan(inputs_for("convnext_tiny", augment=augment, choices=choices)).choices
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
    one = training_seconds(tiny, 1000, (224, 224), GPU)
    assert training_seconds(tiny, 2000, (448, 448), GPU) == pytest.approx(8 * one)
    ratio = training_seconds(v2, 1000, (224, 224), GPU) / one
    assert ratio == pytest.approx(2, rel=0.1), "timm's tables: V2 has 0.43 to 0.51 of V1's images/s"
    assert training_seconds(tiny, 1000, (224, 224), Machine(name="CPU", is_gpu=False, memory=GIB, cores=2)) > 100 * one
    assert [describe_seconds(s) for s in (40, 720, 12_600, 5e5)] == ["40 s", "12 min", "3.5 h", "6 days"]


def test_time_of_a_run_is_that_of_its_parts() -> None:
    model, _ = find_model("convnext_tiny")
    settings = plan_for("convnext_tiny", epochs=10, batch_size=32, micro_batch_size=32, freeze_epochs=1).settings
    counts = DataCounts(images=4000, train=3200, val=320, pixels=50_000)
    cpu = Machine(name="CPU", is_gpu=False, memory=GIB, cores=2)
    run = Workload(model=model, settings=settings, counts=counts, machine=cpu)  # of 1,000 passes
    loading = (IMAGE_SECONDS + 224**2 * PIXEL_SECONDS) / 2  # per image
    trained = loading + training_seconds(model, 1, (224, 224), cpu)
    forward = loading + FORWARD_FRACTION * training_seconds(model, 1, (224, 224), cpu)
    assert estimate_epoch(run) == pytest.approx(3200 * trained)
    slow = replace(GPU, cores=1)
    assert estimate_epoch(replace(run, machine=slow)) == pytest.approx(3200 * 2 * loading), "a GPU waits for it"
    expected = RunTime(
        start=START_SECONDS + 3 * AUTOTUNE_SECONDS,
        check=4000 * (50_000 * PIXEL_SECONDS * (1 + AUDIT_DECODINGS) + AUDIT_SECONDS) / 2,
        head=3 * 3520 * forward,
        epochs=3 * 10 * (3200 * trained + 320 * forward),
        finish=3 * (3520 * forward + EXPORT_SECONDS),
    )
    assert estimate_time(replace(run, folds=3)).to_dict() == pytest.approx(expected.to_dict())
    assert estimate_time(run, speed=2.0).epochs == pytest.approx(2 / 3 * expected.epochs)
    assert estimate_time(replace(run, counts=replace(counts, train=3168))).start == START_SECONDS, "of 990 passes"
    assert estimate_time(replace(run, machine=GPU)).start == START_SECONDS
    less = replace(run, check=False, onnx=False, settings=replace(settings, freeze_epochs=0))
    assert (estimate_time(less).check, estimate_time(less).head) == (0, 0)
    many = estimate_time(replace(less, counts=replace(counts, train=50_000)))
    assert many.finish == pytest.approx((320 + BANK_IMAGES) * forward)


def test_random_weights_keep_a_tag_for_its_preprocessing() -> None:
    name = "convnextv2_nano.fcmae_ft_in22k_in1k_384"  # it says how images are prepared
    assert plan_for(name, weights="none").model == name
    assert plan_for("convnextv2_nano", weights="none").model == "convnextv2_nano"


@pytest.mark.parametrize(
    ("name", "images", "whole", "checkpointed"),
    [
        ("convnext_tiny", 32, 2.31, 1.00), ("convnext_tiny", 128, 7.96, 2.54), ("convnext_tiny", 256, 15.47, 4.59),
        ("convnextv2_tiny", 64, 7.12, 2.62), ("convnext_base", 16, 3.18, 1.73), ("convnext_base", 64, 9.05, 2.82),
        ("convnextv2_base", 32, 8.32, 2.79), ("convnext_large", 32, 8.46, 4.02),
    ],
)  # fmt: skip
def test_gpu_memory_is_the_measured_one(name: str, images: int, whole: float, checkpointed: float) -> None:
    """Peak GiB of a bf16 step at 224 px on an H200 (torch 2.11), `python -m benchmarks.gpu --only g`."""
    for measured, checkpointing in ((whole, False), (checkpointed, True)):
        step = StepMemory(size=(224, 224), half=True, is_gpu=True, grad_checkpointing=checkpointing)
        assert training_bytes(load_catalog()[name], images, step) / GIB == pytest.approx(measured, rel=0.1)


def test_memory_of_16_bits_averages_and_shards() -> None:
    model = load_catalog()["convnext_tiny"]
    plain = StepMemory(size=(224, 224))
    params, activations = (
        training_bytes(model, 0, plain),
        training_bytes(model, 1, plain) - training_bytes(model, 0, plain),
    )
    half = training_bytes(model, 1, replace(plain, half=True)) - training_bytes(model, 0, replace(plain, half=True))
    assert half == pytest.approx(0.58 * activations, rel=1e-6)
    assert training_bytes(model, 0, replace(plain, half=True, ema=True)) == pytest.approx(params * 22 / 16, rel=1e-6)
    assert training_bytes(model, 0, replace(plain, processes=4, shards=4)) == pytest.approx(params / 4, rel=1e-6)
    assert training_bytes(model, 0, replace(plain, processes=4)) > params
    for machine, amp, half in ((GPU, "auto", True), (None, "auto", False), (GPU, "no", False), (None, "bf16", True)):
        assert StepMemory.of({"image_size": 224, "amp": amp}, machine).half == half
    step = StepMemory.of({"image_size": 224}, replace(GPU, processes=4, shards=2))
    assert (step.is_gpu, step.processes, step.shards) == (True, 4, 2)


def test_gpu_is_recognised_by_the_longest_name() -> None:
    assert find_gpu_speed("NVIDIA H100 80GB HBM3") == (3.35e12, 989e12)
    assert find_gpu_speed("NVIDIA H100 PCIe") == (2.0e12, 756e12)
    assert find_gpu_speed("NVIDIA A100-SXM4-80GB")[0] == 2.039e12
    assert find_gpu_speed("NVIDIA A10G")[1] == 70e12
    assert find_gpu_speed("GPU") == find_gpu_speed("NVIDIA GeForce RTX 3090")


@pytest.mark.parametrize(
    ("name", "published"), [("convnext_tiny", 819), ("convnext_base", 339), ("convnext_nano_ols", 1252)]
)
def test_gpu_speed_is_that_of_the_published_table(name: str, published: float) -> None:
    """timm, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv."""
    machine = Machine(name="NVIDIA GeForce RTX 3090", is_gpu=True, memory=24 * GIB, cores=8)
    assert 1000 / training_seconds(load_catalog()[name], 1000, (224, 224), machine) == pytest.approx(published, rel=0.1)
