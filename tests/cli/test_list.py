import csv
import io
import json
import re

import pytest

from convnext_cli.models.catalog import load_catalog
from convnext_cli.models.names import GRAMMAR
from tests.conftest import Convnext


def test_a_card_shows_the_four_stages_and_the_drop_path_ramp(convnext: Convnext) -> None:
    stages = json.loads(convnext("list", "convnext_base", "--json").out)["stages"]
    assert [(s["side_before"], s["side"], s["channels"], s["blocks"]) for s in stages] == [
        (224, 56, 128, 3), (56, 28, 256, 3), (28, 14, 512, 27), (14, 7, 1024, 3),
    ]  # fmt: skip
    ramp = [rate for stage in stages for rate in stage["drop_path"]]
    assert (ramp[0], ramp[-1]) == (0, 1)
    assert ramp == sorted(ramp)
    text = convnext("list", "convnext_base").out
    assert re.search(r"1 +224x224 -> 56x56 +128 +3 +0.00 to 0.06", text)
    assert re.search(r"4 +14x14 -> 7x7 +1024 +3 +0.94 to 1.00", text)


def test_the_drop_path_ramp_equals_timms() -> None:
    import timm

    model = timm.create_model("convnext_nano", drop_path_rate=0.2)
    rates = [[getattr(block.drop_path, "drop_prob", 0.0) for block in stage.blocks] for stage in model.stages]
    for stage, own in zip(load_catalog()["convnext_nano"].stages(224), rates, strict=True):
        assert [0.2 * rate for rate in stage.drop_path] == pytest.approx([own[0], own[-1]])


@pytest.mark.parametrize(
    ("name", "formula", "is_centred"),
    [("convnext_atto_rms", "x / sqrt(mean(x^2) + eps) * w", False),
     ("convnext_zepto_rms", "x / sqrt(var(x) + eps) * w", False),
     ("convnext_tiny", "(x - mean(x)) / sqrt(var(x) + eps) * w + b", True)],
)  # fmt: skip
def test_a_card_has_the_formula_of_the_norm(convnext: Convnext, name: str, formula: str, is_centred: bool) -> None:
    import timm
    import torch

    assert formula in json.loads(convnext("list", name, "--json").out)["norm_formula"]
    norm = timm.create_model(name).stages[0].blocks[0].norm
    torch.manual_seed(0)
    channels, eps = norm.weight.shape[0], norm.eps
    x = torch.randn(2, channels, 3, 3) + 2
    if formula.startswith("x / sqrt(mean"):
        expected = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
    else:
        centred = x - x.mean(1, keepdim=True) if is_centred else x
        expected = centred / (x.var(1, keepdim=True, unbiased=not is_centred) + eps).sqrt()
    is_last = isinstance(norm, torch.nn.LayerNorm) and type(norm).__name__ == "LayerNorm"
    result = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if is_last else norm(x)
    assert torch.allclose(result, expected, atol=1e-4)


def test_the_grammar_matches_all_names_and_is_shown_in_words(convnext: Convnext) -> None:
    card = convnext("list", "convnextv2_huge").out
    assert GRAMMAR not in card
    assert "<family>_<size>" in card
    pattern = re.compile(json.loads(convnext("list", "convnext_tiny", "--json").out)["grammar"])
    for model in load_catalog().values():
        assert pattern.fullmatch(model.name)
        assert all(pattern.fullmatch(f"{model.name}.{tag.name}") for tag in model.tags)


def test_depth_and_width_are_in_csv_and_json(convnext: Convnext) -> None:
    [row] = list(csv.DictReader(io.StringIO(convnext("list", "convnext_tiny", "--csv").out)))
    assert (row["depths"], row["dims"]) == ("3 3 9 3", "96 192 384 768")
    rows = json.loads(convnext("list", "--json").out)
    assert all(len(row["depths"]) == len(row["dims"]) == 4 for row in rows)


def test_filters_with_a_full_name_work_or_are_refused(convnext: Convnext) -> None:
    assert json.loads(convnext("list", "convnext_tiny", "--json").out)["stages"], "a card"
    tags = json.loads(convnext("list", "convnext_tiny", "--tags", "--json").out)
    assert {row["model"].partition(".")[0] for row in tags} == {"convnext_tiny"}
    permissive = json.loads(convnext("list", "convnext_tiny", "--tags", "--license", "permissive", "--json").out)
    assert 0 < len(permissive) < len(tags)
    compared = json.loads(convnext("list", "convnext_tiny", "--compare", "--json").out)
    assert [row["model"] for row in compared if row["model"] in load_catalog()] == ["convnext_tiny"]
    assert len(compared) > 1
    outcome = convnext("list", "convnext_tiny", "--max-params", 5)
    assert (outcome.code, "no model matches 'convnext_tiny' and --max-params" in outcome.err) == (2, True)
    outcome = convnext("list", "--max-params", 0)
    assert (outcome.code, "no model matches --max-params. " in outcome.err) == (2, True)
    outcome = convnext("list", "convnext_tiny.in12k_ft_in1k", "--csv")
    assert (outcome.code, "--csv cannot be used with one set of weights" in outcome.err) == (2, True)


def test_a_mistyped_name_gets_a_suggestion(convnext: Convnext) -> None:
    assert "Did you mean convnextv2_base" in convnext("list", "convnextv2_bse").err


@pytest.mark.parametrize(
    "command",
    ["list", "list --tags", "list --compare", "list convnext_zepto_rms", "recommend --dataset-size 6000",
     "recommend --dataset-size 6000 --vram 12 --recipe published --license permissive"],
)  # fmt: skip
@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_keep_names_whole(convnext: Convnext, monkeypatch: pytest.MonkeyPatch, command: str, width: int) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = convnext(*command.split()).out
    names = {word for word in whole.split() if re.fullmatch(GRAMMAR, word)}
    assert names
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = convnext(*command.split()).out
    assert names <= set(narrow.split()), "no name is cut"
    rows = [line for line in narrow.splitlines() if line.split() and re.fullmatch(GRAMMAR, line.split()[0])]
    assert all(len(line) <= width for line in rows[1:])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("convnext_tiny", "convnext recommend DATA --model convnext_tiny"),
        ("convnextv2_small", "convnext finetune DATA --model convnextv2_small --weights none"),
        ("convnext_zepto_rms.builtin", "convnext finetune DATA --weights builtin"),
    ],
)
def test_a_card_ends_with_the_next_command(convnext: Convnext, name: str, command: str) -> None:
    assert convnext("list", name).err.splitlines()[-1] == f"Next: {command}"
