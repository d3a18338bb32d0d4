from pathlib import Path

import pytest
import typer.main

from convnext_cli.cli.app import make_app
from convnext_cli.cli.hints import COMMANDS, NAMES, REASONS
from tests.conftest import Convnext


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("--epochs x", "'x' is not a whole number"),
        ("--learning-rate 1", "No such option: --learning-rate. Did you mean --lr?"),
        ("--learning_rate=1", "Did you mean --lr?"),
        ("-lr 0.1", "No such option: -lr. Did you mean --lr?"),
        ("--batch_size 3", "Did you mean --batch-size?"),
        ("--num-epochs 3", "Did you mean --epochs?"),
        ("--epcohs 3", "Did you mean --epochs"),
        ("--wd 0.1", "Did you mean --weight-decay?"),
        ("--arch convnext_tiny", "Did you mean --model?"),
        ("--optimizer sgd", "the optimizer is always AdamW, because"),
        ("--opt=sgd", "the optimizer is always AdamW, because"),
        ("--sched step", "then cosine"),
        ("--num-classes 3", "counted from the data"),
        ("--device cuda:0", "CUDA_VISIBLE_DEVICES"),
        ("--head wide", "is not one of 'linear', 'mlp' ("),
        ("--qqqqqqqq", "No such option: --qqqqqqqq"),
    ],
)
def test_options_of_other_programs_get_a_hint(convnext: Convnext, typed: str, words: str) -> None:
    outcome = convnext("finetune", "data", *typed.split())
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("error: ") == len(outcome.err.splitlines()) == 1


def test_commands_of_other_programs_get_a_hint(convnext: Convnext) -> None:
    assert "No such command 'train'. Did you mean 'finetune'? (" in convnext("train", "data").err
    assert set(COMMANDS.values()) < set(typer.main.get_command(make_app()).commands)  # type: ignore[attr-defined]


def test_each_command_suggests_only_its_own_options(convnext: Convnext) -> None:
    assert "Did you mean --classes?" in convnext("recommend", "--num-classes", 3).err
    assert "--lr" not in convnext("predict", "x.png", "--learning-rate", 3).err
    assert "AdamW" not in convnext("predict", "x.png", "--optimizer", "sgd").err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("eval --run r", "No such option: --run. RUN is an argument: `convnext eval RUN`"),
        ("export --run r", "No such option: --run. RUN is an argument: `convnext export RUN`"),
        ("finetune --data d", "No such option: --data. DATA is an argument: `convnext finetune DATA`"),
        ("check --data d", "No such option: --data. DATA is an argument: `convnext check DATA`"),
        ("finetune --data-dir d", "No such option: --data-dir. DATA is an argument: `convnext finetune DATA`"),
        ("predict --image i", "No such option: --image. IMAGES is an argument: `convnext predict IMAGES`"),
    ],
)
def test_an_argument_that_is_written_as_an_option_is_named(convnext: Convnext, words: str, hint: str) -> None:
    outcome = convnext(*words.split())
    assert outcome.code == 2
    assert hint in outcome.err


@pytest.mark.parametrize("option", ["--resplit-val", "--val-fraction"])  # which notes of recommend name
def test_an_option_of_another_command_is_named_with_that_command(convnext: Convnext, option: str) -> None:
    owners = {"--resplit-val": "check, finetune", "--val-fraction": "finetune"}
    assert f"No such option: {option}. It is an option of {owners[option]} (" in convnext("recommend", "d", option).err


def test_a_file_that_begins_with_a_dash_is_no_option(
    convnext: Convnext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-leaf 1.png").touch()
    assert "Write ./-leaf 1.png for the file (" in convnext("predict", "-leaf 1.png").err


def test_an_option_without_its_value_is_answered_with_the_help_of_its_command(convnext: Convnext) -> None:
    assert "(`convnext check --help` lists the options)" in convnext("check", "d", "--fix-list").err


def test_every_hint_names_an_existing_option() -> None:
    commands = typer.main.get_command(make_app()).commands.values()  # type: ignore[attr-defined]
    known = {flag for command in commands for parameter in command.params for flag in parameter.opts}
    assert set(NAMES.values()) <= known
    assert not {f"--{name}" for name in (*NAMES, *REASONS)} & {
        flag
        for command in commands
        if command.name == "finetune"
        for parameter in command.params
        for flag in parameter.opts
    }, "an option that there is needs no hint"
