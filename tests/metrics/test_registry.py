"""The metric registry agrees with what is computed and stored, and prints each metric in one way."""

import math
from dataclasses import fields

import pytest

from convnext_cli.metrics.comparison import Difference
from convnext_cli.metrics.intervals import Interval
from convnext_cli.metrics.registry import METRICS, OVERALL, PER_CLASS, PER_LABEL, format_ci
from convnext_cli.metrics.summary import ClassMetrics, Metrics


def test_registry_has_each_stored_metric() -> None:
    assert {metric.key for metric in OVERALL} == {f.name for f in fields(Metrics)} - {
        "images",
        "per_class",
        "confusion",
    }
    assert [metric.key for metric in PER_CLASS] == [f.name for f in fields(ClassMetrics)][2:]


def test_averages_name_a_per_class_metric() -> None:
    parts = {metric.key for metric in (*PER_CLASS, *PER_LABEL)}
    assert all(METRICS[key].average_of in parts for key in METRICS if key.startswith("macro_"))


@pytest.mark.parametrize(
    ("key", "heading", "text", "ci"),
    [
        ("top1", "accuracy %", "61.3%", "[55.0, 67.2]"),
        ("log_loss", "log loss", "0.6125", "[0.5500, 0.6716]"),
        ("kappa", "Cohen's kappa", "0.613", "[0.550, 0.672]"),
        ("ece", "ECE %", "61.3%", "[55.0, 67.2]"),
    ],
)
def test_metric_is_printed_with_its_unit_and_digits(key: str, heading: str, text: str, ci: str) -> None:
    metric, interval = METRICS[key], Interval(0.55, 0.6716)
    assert metric.heading == heading
    assert metric.format_with_unit(0.61253) == text
    assert metric.format_estimate(0.61253, interval) == f"{text}, 95% CI {ci}"


def test_only_what_is_exact_is_shown_as_the_end_of_a_range() -> None:
    nearly = Interval(0.00004, 0.99996)
    assert METRICS["top1"].format_estimate(0.9997, nearly) == ">99.9%, 95% CI [<0.1, >99.9]"
    assert METRICS["top1"].format_estimate(1.0, Interval(0.0, 1.0)) == "100.0%, 95% CI [0.0, 100.0]"
    assert [METRICS["mcc"].format(value) for value in (-0.9998, 0.0001, 0.9998)] == ["<-0.999", "0.000", ">0.999"]
    assert [METRICS["log_loss"].format(value) for value in (0.0, 0.00001, math.inf)] == ["0.0000", "<0.0001", "inf"]
    assert METRICS["r2"].format(0.9999) == ">0.999"


def test_undefined_metric_is_a_dash_in_tables_and_said_in_sentences() -> None:
    assert METRICS["mcc"].list_cells(None, None) == ("-", "-")
    assert METRICS["mcc"].format_estimate(None, None) == "not defined"
    assert METRICS["mcc"].format_difference(None) == "-"
    assert format_ci(None) == ""


def test_difference_is_printed_in_points_with_signs() -> None:
    difference = Difference(0.012, Interval(-0.003, 0.027))
    assert METRICS["top1"].format_difference(difference) == "+1.2 points, 95% CI [-0.3, +2.7]"
    assert METRICS["log_loss"].format_difference(difference) == "+0.0120, 95% CI [-0.0030, +0.0270]"


def test_metrics_in_the_unit_of_the_targets_show_their_digits_at_any_scale() -> None:
    mae = METRICS["mae"]
    assert mae.format_estimate(3.29e-6, Interval(2e-6, 5.25e-6)) == "3.29e-06, 95% CI [2e-06, 5.25e-06]"
    assert [mae.format(value) for value in (0.0, 0.5, 12.25, 3.4826e30)] == ["0.0000", "0.5000", "12.2500", "3.483e+30"]
    difference = Difference(value=-1e-6, interval=Interval(-2e-6, 1e-6))
    assert mae.format_difference(difference) == "-1e-06, 95% CI [-2e-06, +1e-06]"
    assert METRICS["log_loss"].format(1e-6) == "<0.0001"
