"""What single settings of a recipe do to a run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convnext_cli import evaluate
from convnext_cli.errors import DataError, UsageError
from convnext_cli.progress import Notice
from convnext_cli.recipes.settings import Choice, default_settings
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training import loop, step, validation
from convnext_cli.training.checkpoint import read_checkpoint
from convnext_cli.training.events import EpochDone, FinetuneResult
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.parts.ema import find_decay
from convnext_cli.training.phases import soup
from convnext_cli.training.planning import prepare
from tests.conftest import save_image
from tests.training.conftest import TINY, resume, small_request, stop_after, tiny_request, train
from tools.kill_test import read_final_files

FEW: dict[str, Any] = {"model": "test_convnext2", "weights": "none", "audit": False}


def load_weights(run: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(Path(run) / "model.safetensors")
    return tensors


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"label_column": "finding"}, "--label-column has no effect: .* is not read from a table"),
        ({"group_column": "none"}, "--group-column has no effect: .* is not read from a table"),
        ({"grades": "0,1"}, "--grades has no effect on one class per image"),
        ({"log_target": "no"}, "--log-target has no effect on one class per image"),
        ({"blank": "negative"}, "--blank has no effect on one class per image"),
        ({"label_sep": "|"}, "--label-sep has no effect on one class per image"),
        ({"uncertain": "positive"}, "--uncertain has no effect on one class per image"),
        ({"task": "regression", "label_smoothing": 0.1}, "--label-smoothing has no effect on a number per image"),
        ({"teacher_views": 3}, "--teacher-views has no effect without a teacher"),
        ({"warmup_epochs": 4.0}, "--warmup-epochs 4 is more than the 3 epochs"),
        ({"mixup": 0.0, "cutmix": 0.0, "mixup_off_epoch": 1}, "--mixup-off-epoch has no effect"),
    ],
)
def test_option_without_effect_is_refused_but_not_in_a_plan(
    few_digits: Path, options: dict[str, Any], problem: str
) -> None:
    """A plan file holds every setting, also those of other data."""
    request = tiny_request(few_digits, "run", audit=False, **options)
    with pytest.raises(UsageError, match=problem):
        prepare(request)
    planned = {
        name: replace(choice, source="plan" if name != "task" else "flag") for name, choice in request.choices.items()
    }
    assert prepare(replace(request, choices=planned)).plan.values.items() >= options.items()


def test_settings_of_their_default_value_are_accepted(few_digits: Path) -> None:
    defaults = {name: value for name, value in default_settings().items() if name not in {*TINY, "head_hidden_size"}}
    assert prepare(tiny_request(few_digits, "run", audit=False, **defaults)).plan.settings.teacher_views == 8


def test_labels_may_be_blank_and_uncertain_and_numbers_logarithmic(few_digits: Path) -> None:
    names = sorted(path.relative_to(few_digits).as_posix() for path in few_digits.rglob("*.png"))
    cells = [f"{few_digits / name},{i % 2},{('', -1, 1)[i % 3]},{i + 1.5}" for i, name in enumerate(names)]
    table = Path("labels.csv")
    table.write_text("\n".join(["path,a,b,size", *cells]))
    several = {"label_columns": "a,b", "blank": "negative", "uncertain": "positive", "task": "multilabel"}
    number = {"label_column": "size", "log_target": "yes", "task": "regression"}
    for options in (several, number):
        assert prepare(tiny_request(table, "run", audit=False, **options)).index.task.name == options["task"]
    with pytest.raises(UsageError, match="--log-target has no effect on several labels per image"):
        prepare(tiny_request(table, "run", audit=False, **several, log_target="yes"))
    with pytest.raises(UsageError, match="--blank has no effect on a number per image"):
        prepare(tiny_request(table, "run", audit=False, **number, blank="negative"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("task=multilabel label_columns=a,b label_sep=;", "label-sep has no effect on several .* a column of its own"),
        ("task=multilabel label_column=tags blank=negative", "blank has no effect on several .* for a column per lab"),
        ("task=multilabel label_column=tags uncertain=positive", "uncertain has no effect on several labels per image"),
        ("task=multilabel label_columns=a,b label_column=tags", "label-column has no effect with --label-columns"),
        ("group_column=tags group_from=[0-9]+", "group-column has no effect with --group-from"),
        ("split_column=none resplit=", "split-column has no effect with --resplit"),
    ],
)
def test_option_of_a_table_without_effect_is_refused(few_digits: Path, words: str, problem: str) -> None:
    names = sorted(path.relative_to(few_digits).as_posix() for path in few_digits.rglob("*.png"))
    cells = [f"{few_digits / name},{i % 2},{i % 3 % 2},{('x', 'y', 'x;y')[i % 3]}" for i, name in enumerate(names)]
    Path("labels.csv").write_text("\n".join(["path,a,b,tags", *cells]))
    pairs = [word.split("=") for word in words.split()]
    options = {name: value or True for name, value in pairs}
    with pytest.raises(UsageError, match=f"--{problem}"):
        prepare(tiny_request(Path("labels.csv"), "run", audit=False, **options))


def test_training_without_validation_images_says_what_gives_some(few_digits: Path) -> None:
    notices = prepare(tiny_request(few_digits, "run", audit=False, val_fraction=0.0)).notices
    [text] = [notice.text for notice in notices if notice.severity == "warning"]
    assert text == (
        "there is no validation split: the last epoch is kept, not the best one, and the model is not calibrated. "
        "A --val-fraction above 0, or a val folder, gives one"
    )


@pytest.mark.parametrize(
    ("layout", "options", "advice"),
    [
        ("{}/{}.png", {}, "Collect more images, or raise --val-fraction (now 0.15)"),
        ("val/{}/{}.png train/{}/x{}.png", {}, "--resplit-val draws a larger one from train and val"),
        ("{}/{}.png", {"folds": 2, "patience": 3}, "Fewer folds make it larger"),
        (
            "{}/{}.png",
            {"group_from": ".*/"},
            "The images are of 2 groups, which stay whole: collect more groups, or correct them by --group-from",
        ),
    ],
)
def test_a_small_validation_split_is_a_warning_with_advice_that_makes_it_larger(
    tmp_path: Path, layout: str, options: dict[str, Any], advice: str
) -> None:
    for place in layout.split():
        for number in range(8):
            save_image(tmp_path / "data" / place.format("ab"[number % 2], number), seed=number)
    options = {"val_fraction": 0.15, **options}
    notices = prepare(tiny_request(tmp_path / "data", tmp_path / "run", audit=False, **options)).notices
    [text] = [notice.text for notice in notices if "validation split" in notice.text]
    assert text.endswith(f". {advice}")
    assert ("; --patience has no effect" in text) == ("patience" in options)
    missing = [notice.text for notice in notices if "draws new splits" in notice.text]
    assert missing == ["there is no test split; --resplit draws new splits with one"] * (" " in layout)


def test_resplit_val_draws_validation_images_from_train_and_val_and_keeps_the_test_split(tmp_path: Path) -> None:
    for number in range(100):
        split = "test" if number < 20 else "val" if number < 22 else "train"
        save_image(tmp_path / "data" / split / "ab"[number % 2] / f"p{number // 2:02}_{number}.png", seed=number)
    options = {"audit": False, "val_fraction": 0.2, "resplit_val": True, "group_from": "(p[0-9]+)"}
    index = prepare(tiny_request(tmp_path / "data", tmp_path / "run", **options)).index
    drawn = {split: {index.paths[row] for row in index.rows(split)} for split in ("train", "val", "test")}
    assert {split: len(paths) for split, paths in drawn.items()} == {"train": 64, "val": 16, "test": 20}
    assert all(path.startswith("test/") for path in drawn["test"])
    assert not any(path.startswith("test/") for path in drawn["val"])
    groups = [{Path(path).name[:3] for path in drawn[split]} for split in ("train", "val")]
    assert not set.intersection(*groups)


def test_resplit_val_without_a_val_split_is_refused(few_digits: Path) -> None:
    with pytest.raises(UsageError, match=r"--resplit-val has no effect: .* has no val split"):
        prepare(tiny_request(few_digits, "run", resplit_val=True))


@pytest.mark.parametrize("other", [{"resplit": True}, {"folds": 2}, {"fold": 1, "folds": 2}, {"leave_out": "site"}])
def test_resplit_val_where_another_option_replaces_the_val_split_is_refused(
    few_digits: Path, other: dict[str, Any]
) -> None:
    name = list(other)[-1].replace("_", "-")
    with pytest.raises(UsageError, match=f"--resplit-val has no effect with --{name}"):
        prepare(tiny_request(few_digits, "run", audit=False, resplit_val=True, **other))


def test_fractions_that_folds_replace_give_a_note(tmp_path: Path) -> None:
    rows = [f"{n}.png,{'ab'[n % 2]},{'xyz'[n % 3]}" for n in range(60)]
    for n in range(60):
        save_image(tmp_path / "data" / f"{n}.png", seed=n)
    (tmp_path / "data/table.csv").write_text("\n".join(["path,label,site", *rows]))
    options = {"audit": False, "val_fraction": 0.3, "test_fraction": 0.2}

    def list_notes(**more: Any) -> list[str]:
        preparation = prepare(tiny_request(tmp_path / "data", tmp_path / "run", **options, **more))
        return [notice.text for notice in preparation.notices if "has no effect" in notice.text]

    assert list_notes() == []
    assert list_notes(folds=2) == ["--val-fraction has no effect: each fold is the validation split in turn"]
    assert list_notes(leave_out="site") == [
        "--test-fraction has no effect: the images of each value of the column are a test split"
    ]


def test_settings_without_effect_on_the_head_alone_give_a_note(few_digits: Path) -> None:
    options = {"audit": False, "freeze_epochs": 2, "batch_size": 8, "drop_path": 0.1, "weight_decay": 0.1, "lr": 0.5}

    def list_notes(**more: Any) -> list[str]:
        notices = prepare(tiny_request(few_digits, "run", **options | more)).notices
        return [notice.text for notice in notices if "no effect" in notice.text or notice.text.startswith("lr ")]

    [note] = list_notes(epochs=0)
    flags = note.split(".")[0].removeprefix("no effect: ").split(", ")
    assert {"--batch-size", "--drop-path", "--lr", "--mixup"} <= set(flags)
    assert not {"--weight-decay", "--epochs", "--freeze-epochs", "--image-size"} & set(flags)
    assert "no effect" not in " ".join(list_notes(epochs=1))


def test_last_rate_above_the_rate_of_the_recipe_is_accepted_below_that_of_the_user(few_digits: Path) -> None:
    plan = prepare(tiny_request(few_digits, "run", audit=False, lr=0.05, min_lr=0.02)).plan
    assert (plan.settings.lr, plan.settings.min_lr) == (0.05, 0.02)


def test_teacher_of_the_head_alone_is_refused(few_digits: Path) -> None:
    with pytest.raises(UsageError, match="--teacher has no effect with --epochs 0"):
        prepare(tiny_request(few_digits, "run", audit=False, epochs=0, freeze_epochs=1, teacher="resnet18"))


def test_warmup_that_a_time_budget_leaves_no_room_for_is_shortened(few_digits: Path) -> None:
    plan = prepare(tiny_request(few_digits, "run", audit=False, warmup_epochs=2.0)).plan
    assert plan.with_epochs(Choice(value=2, source="max-time")).settings.warmup_epochs == 2.0
    assert plan.with_epochs(Choice(value=1, source="max-time")).settings.warmup_epochs == 0.1


def test_ema_weights_are_validated_and_kept(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    compute = validation._compute_logits

    def watch(context: Any, *others: Any) -> Any:
        seen.append(context.model.head.fc.bias.detach().clone())
        return compute(context, *others)

    monkeypatch.setattr(validation, "_compute_logits", watch)
    train(small_request(digits, Path("plain"), **FEW))
    train(small_request(digits, Path("averaged"), ema_decay=0.99, **FEW))
    last = RunFolder(Path("averaged")).list_checkpoints()[0]
    tensors, _ = read_checkpoint(last)
    assert torch.equal(load_weights("averaged")["head.fc.bias"], tensors["average.head.fc.bias"])
    assert torch.equal(load_weights("averaged")["head.fc.bias"], seen[1])
    plain = load_weights("plain")["head.fc.bias"]
    assert torch.equal(plain, tensors["model.head.fc.bias"]), "averaging does not change the training"
    assert not torch.equal(plain, load_weights("averaged")["head.fc.bias"])


def test_ema_averages_the_steps(digits: Path) -> None:
    train(
        small_request(digits, Path("run"), ema_decay=0.9, save_every=1, epochs=1, batch_size=128, **FEW)
    )  # 195 images: 2 steps
    run = RunFolder(Path("run"))
    (last, _), (first, _) = (read_checkpoint(path) for path in run.list_checkpoints())
    name = "head.fc.weight"
    decay = find_decay(2, 0.9)
    expected = decay * first[f"average.{name}"] + (1 - decay) * last[f"model.{name}"]
    assert torch.allclose(last[f"average.{name}"], expected, atol=1e-7)


EMA = {"ema_decay": 0.9, "freeze_epochs": 2, "sampler": "balanced", "mixup_off_epoch": 1}
SOUP = {"average_best": 2}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [(EMA, 3), (SOUP, 5), *(pytest.param(settings, 8, marks=pytest.mark.slow) for settings in (EMA, SOUP))],
)
def test_ema_head_phase_sampler_and_soup_resume_to_the_same_bytes(
    digits: Path, train_once: Callable[..., RunFolder], settings: dict[str, Any], steps: int
) -> None:
    settings = {**settings, "epochs": 2, "batch_size": 64, "micro_batch_size": 32}
    stop_after(tiny_request(digits, "run", **settings), steps)
    resume("run")
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(train_once(digits, **settings))


def test_head_phase_trains_the_head_only(digits: Path, run: RunFolder) -> None:
    own = {"model": "convnext_zepto_rms", "weights": str(run.path), "audit": False}
    events = train(small_request(digits, Path("head"), freeze_epochs=5, epochs=0, **own))
    before, after = load_file(run.path / "model.safetensors"), load_weights("head")
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"head.fc.weight", "head.fc.bias"}
    (epoch,) = (event for event in events if isinstance(event, EpochDone))
    finished = events[-1]
    assert isinstance(finished, FinetuneResult)
    assert (epoch.epoch, finished.epoch) == (0, 0)
    assert [json.loads(line)["epoch"] for line in (Path("head") / "metrics.jsonl").read_text().splitlines()] == [0]
    assert finished.val is not None
    assert evaluate(Path("head"), split="val").metrics.top1 == pytest.approx(finished.val.top1)


def test_trained_head_is_better_from_the_first_epoch(digits: Path) -> None:
    events = train(small_request(digits, Path("run"), freeze_epochs=10, lr=1e-6))
    head, first = (event.val for event in events if isinstance(event, EpochDone))
    assert head is not None
    assert first is not None
    assert head.top1 > 0.8, "three digits, from features of photographs"
    assert abs(first.log_loss - head.log_loss) < 0.05, "with so small a rate it stays as after the head-only phase"


def test_double_correction_is_refused(digits: Path) -> None:
    with pytest.raises(UsageError, match="sampler and class_weights"):
        train(small_request(digits, Path("run"), class_weights="balanced", sampler="balanced"))


def test_mixing_stops_at_mixup_off_epoch(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed: list[int] = []
    mix = step.mix_batch  # type: ignore[attr-defined]

    def watch(inputs: Any, targets: Any, random: np.random.Generator, **alphas: float) -> Any:
        mixed.append(len(inputs))
        return mix(inputs, targets, random, **alphas)

    monkeypatch.setattr(step, "mix_batch", watch)
    train(small_request(digits, Path("run"), mixup=0.8, mixup_off_epoch=2, epochs=3, batch_size=64, **FEW))
    assert len(mixed) == 2 * 4, "195 images are 4 batches; the third epoch mixes nothing"


def test_balanced_sampler_shows_classes_equally_often(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    take = loop.take_step  # type: ignore[attr-defined]

    def watch(context: Any, state: Any, batch: Any) -> Any:
        shown.extend(batch.targets.tolist())
        return take(context, state, batch)

    monkeypatch.setattr(loop, "take_step", watch)
    rare = Path("rare")
    for digit, images in (("0", 60), ("1", 60), ("2", 12)):
        (rare / digit).mkdir(parents=True)
        for path in sorted((digits / digit).iterdir())[:images]:
            (rare / digit / path.name).write_bytes(path.read_bytes())
    train(small_request(rare, Path("run"), sampler="balanced", **FEW))
    counts = np.bincount(shown)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == sum(row.endswith(",train") for row in (Path("run") / "split.csv").read_text().split())


def test_head_init_scale_scales_the_initial_weights(few_digits: Path) -> None:
    for name, scale in (("one", 1.0), ("small", 0.001)):
        train(small_request(few_digits, Path(name), head_init_scale=scale, lr=1e-9))
    ratio = load_weights("small")["head.fc.weight"].std() / load_weights("one")["head.fc.weight"].std()
    assert ratio == pytest.approx(0.001, rel=0.01)


def test_soup_of_best_epochs_is_kept_if_no_worse(digits: Path) -> None:
    own = {"average_best": 2, "epochs": 3, "batch_size": 64, **FEW}
    candidates: dict[str, dict[str, torch.Tensor]] = {}
    events = []
    for event in finetune_steps(small_request(digits, Path("run"), **own)):
        events.append(event)
        for path in RunFolder(Path("run")).list_candidates():
            candidates[path.name] = load_file(path)
    log = RunFolder(Path("run")).read_log()
    best = sorted(log, key=lambda entry: (entry["val_balanced_accuracy"], -entry["val_log_loss"]))[-2:]
    [text] = [event.text for event in events if isinstance(event, Notice)]
    assert f"epochs {', '.join(str(epoch) for epoch in sorted(entry['epoch'] for entry in best))}" in text
    assert not RunFolder(Path("run")).list_candidates(), "they are removed at the end"
    means = [candidates[f"epoch-{entry['epoch']:04}.safetensors"]["head.fc.weight"] for entry in best]
    is_mean = torch.allclose(load_weights("run")["head.fc.weight"], (means[0] + means[1]) / 2, atol=1e-7)
    assert is_mean == ("and is kept" in text)
    recorded = json.loads((Path("run") / "metrics.json").read_text())
    assert is_mean == recorded["selected_by"].startswith("averaged with")
    assert evaluate(Path("run"), split="val").uncalibrated.log_loss == pytest.approx(recorded["val"]["log_loss"])


def test_soup_without_validation_images_is_kept(few_digits: Path) -> None:
    events = train(tiny_request(few_digits, Path("run"), average_best=2, epochs=2, val_fraction=0))
    assert "the average of epochs 1, 2 is kept" in [event.text for event in events if isinstance(event, Notice)]


def test_worse_soup_is_not_kept(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soup, "average_tensors", lambda result: {n: torch.zeros_like(v) for n, v in result[0].items()})
    events = train(small_request(digits, Path("run"), average_best=2, epochs=2, batch_size=64))
    assert any(isinstance(event, Notice) and "is kept" in event.text for event in events)
    assert load_weights("run")["head.fc.weight"].abs().sum() > 0


def test_images_of_which_none_can_be_opened_are_refused_unchecked_too(tmp_path: Path) -> None:
    for number in range(20):
        (folder := tmp_path / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    with pytest.raises(DataError, match="none of 20 sampled images can be opened"):
        prepare(tiny_request(tmp_path / "data", tmp_path / "run", audit=False))
