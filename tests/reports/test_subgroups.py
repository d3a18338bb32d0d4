"""Sections on subgroups, drift, recalibration and left-out values."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext_cli import evaluate, write_report
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.reports.report import collect_data
from convnext_cli.reports.section import Cell, Table
from convnext_cli.reports.sites import show_drift, show_left_out
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder
from tests.reports.browser import CHROMIUM, Browser

LONG = "Universitätsklinikum_Hamburg-Eppendorf_Radiologie"


@pytest.fixture(scope="module")
def evaluation(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The small run on brighter digits of two sites, of which one has a long name, recalibrated; with its report."""
    home = tmp_path_factory.mktemp("site")
    shutil.copytree(run.path, home / "run")
    index, rows = run.read_split(), []
    for number, row in enumerate((*index.rows("test"), *index.rows("val"))):
        path = home / f"data/{index.name_class(row)}/{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(index.root / index.paths[row]))
        Image.fromarray((255 * (pixels / 255) ** 0.4).astype(np.uint8)).save(path)
        rows.append([path.relative_to(home / "data"), LONG if number % 3 else "<b>Oslo</b>"])
    with (home / "sites.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "site"], *rows])
    result = evaluate(
        home / "run",
        home / "data",
        targets=["sensitivity=0.9:0", "ppv=0.5:1@prevalence=0.1", "specificity=0.9:2"],
        subgroups="site",
        subgroup_table=home / "sites.csv",
        recalibrate=40,
    )
    write_report(result)
    return result


def test_report_shows_subgroups_with_forest_plots_and_drift(evaluation: Evaluation) -> None:
    page = RunFolder(evaluation.run).report.read_text()
    for text in (
        "Subgroups", "Forest plots", "Gaps to the rest", "Metrics of each subgroup", "Holm-corrected for",
        "Drift", "These images differ from the run&#39;s validation images", "Compared with the validation",
        "The calibration was fitted on", "recalibration images.", "without the recalibration images:",
    ):  # fmt: skip
        assert text in page, text
    assert "validation images." not in re.findall(r"Calibrated with [^<]*", page)[0]
    assert "<b>Oslo" not in page
    assert evaluation.subgroups is not None
    results = evaluation.subgroups.groupings[0].subgroups[0].metrics
    drawn = {path.name for path in RunFolder(evaluation.run).plots.glob("forest_*.png")}
    assert drawn == {f"forest_{number}.png" for number in range(1, len(results) + 1)}


def test_recalibration_is_reported_where_drift_is_not_measured(evaluation: Evaluation) -> None:
    data = collect_data(replace(evaluation, drift=None))
    section = show_drift(data)
    assert section is not None
    assert section.blocks == []
    [sentence] = section.sentences
    assert re.match(r"The calibration was fitted on \d+ other images of this folder", str(sentence))
    assert "the run keeps its own. Change from that one on these images: log loss " in str(sentence)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the report with")
def test_sections_fit_a_phone_and_a_screen(evaluation: Evaluation) -> None:
    with Browser() as browser:
        for width in (390, 1280):
            browser.open(RunFolder(evaluation.run).report, width)
            browser.unfold()
            assert browser.list_cut() == []
            assert not browser.requests
        browser.open(RunFolder(evaluation.run).report, 718)  # px: A4 less its margins
        browser.ask("Emulation.setEmulatedMedia", media="print")
        assert browser.list_cut() == []
        lines = "[...document.querySelectorAll('tbody th, thead th')].map(each => each.clientHeight)"
        assert max(browser.evaluate(lines)) < 120, "no word of a name or a heading is broken into letters"


def test_left_out_values_are_read_from_the_cross_validation(evaluation: Evaluation, tmp_path: Path) -> None:
    data = collect_data(evaluation)
    assert show_left_out(data) is None
    part: dict[str, Any] = {
        "images": 40, "values": {"balanced_accuracy": 0.9},
        "intervals": {"balanced_accuracy": {"low": 0.8, "high": 0.95}},
    }  # fmt: skip
    metrics = {
        "folds": [],
        "spread": {},
        "left_out": [{"name": "Oslo", "internal": part, "external": part | {"images": 99}}],
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    section = show_left_out(replace(data, run=FoldsFolder(tmp_path)))
    assert section is not None
    assert re.match("For each of Oslo", str(section.sentences[0]))
    tables = [block for block in section.blocks if isinstance(block, Table)]
    estimate = Cell("90.0", note="[80.0, 95.0]")
    assert tables[0].rows == [("Oslo", "40", estimate, "99", estimate)], "each metric has its number of images"
