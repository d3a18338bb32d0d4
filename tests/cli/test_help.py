import json
import subprocess
import sys

import pytest

from convnext_cli.cli.app import COMMANDS
from convnext_cli.options import GROUPS
from convnext_cli.recipes.settings import declare_settings
from tests.conftest import Convnext

HEAVY = {"torch", "timm", "numpy", "PIL", "rich", "matplotlib", "sklearn", "accelerate"}
LINES = 48  # two screens of 24 lines


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_two_screens_of_80_columns(command: str, convnext: Convnext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = convnext(*command.split(), "--help")
    lines = page.out.splitlines()
    assert page.code == 0
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", ["list --help", "list femto"])
def test_terminal_of_unknown_width_is_one_without_columns(
    words: str, convnext: Convnext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    expected = convnext(*words.split()).out
    monkeypatch.setenv("COLUMNS", "0")
    assert convnext(*words.split()).out == expected


def test_help_of_finetune_shows_the_common_options_in_five_groups(convnext: Convnext) -> None:
    lines = convnext("finetune", "--help").out.splitlines()
    assert [line.rstrip(":") for line in lines if line.endswith(":") and not line.startswith(" ")] == list(GROUPS)
    options = [line for line in lines if line.lstrip().startswith("-")]
    assert 20 <= len(options) <= 30
    named = ("--[no-]resplit", "--offline", "--group-from", "--exclude")  # in findings of `check` and in errors
    assert all(any(line.lstrip().startswith(flag) for line in options) for flag in named)


def test_help_shows_the_commands_in_the_order_of_their_use() -> None:
    order = ["check", "recommend", "finetune", "eval", "predict", "export"]
    assert [command for command in COMMANDS if command in order] == order


def test_help_all_shows_every_option(convnext: Convnext) -> None:
    page = convnext("finetune", "--help-all").out
    for name in declare_settings():
        flag = name.replace("_", "-")
        assert f"--{flag} " in page or f"--[no-]{flag}" in page, name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    script = (
        "import json, sys\n"
        "from convnext_cli.cli.app import main\n"
        "try:\n    main([sys.argv[1], '--help'])\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, command], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stderr.splitlines()[-1]))


def test_imbalance_and_fold_are_short_for_several_settings(digits: str, convnext: Convnext) -> None:
    words = ("finetune", digits, "--dry-run", "--no-check", "--json")
    result = json.loads(convnext(*words, "--imbalance", "weights", "--fold", "2/3").out)
    values = {name: choice["value"] for name, choice in result["settings"].items()}
    assert (values["class_weights"], values["sampler"], values["logit_adjustment"]) == ("balanced", "shuffle", 0.0)
    assert (values["folds"], values["fold"]) == (3, 2)
    assert "--fold 2/3" in result["next"]
    former = json.loads(convnext(*words, "--class-weights", "balanced", "--folds", "3", "--fold", "2").out)
    assert {name: choice["value"] for name, choice in former["settings"].items()} == values


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--imbalance weights --sampler balanced", "imbalance and sampler both set"),
        ("--fold 2/3 --folds 4", "--fold 2/3 and --folds 4 differ"),
        ("--fold two", "'two' is not a fold; write K/N"),
        ("--max-time soon", "invalid duration 'soon'"),
        ("--lr fast", "'fast' is not a number"),
        ("--imbalance most", "is not one of"),
    ],
)
def test_wrong_values_are_usage_errors_of_one_line(words: str, problem: str, digits: str, convnext: Convnext) -> None:
    outcome = convnext("finetune", digits, "--dry-run", *words.split())
    assert outcome.code == 2
    [error] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert problem in error
