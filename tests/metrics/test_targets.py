"""Targets: the choice of thresholds, confidence, predictive values, likelihood ratios and decision curves."""

import json
import math
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binomtest

from convnext_cli.errors import UsageError
from convnext_cli.inference.calibration import Calibration
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.confidence import Rate, count_independent, measure_confidence
from convnext_cli.metrics.decision import (
    DecisionCurve,
    apply_ratio,
    estimate_likelihood_ratios,
    estimate_ratio,
    trace_decision_curve,
    update_prevalence,
)
from convnext_cli.metrics.intervals import UNDEFINED, Estimate, Interval
from convnext_cli.metrics.scaling import choose_threshold
from convnext_cli.metrics.thresholds import (
    Bound,
    Target,
    Threshold,
    apply_threshold,
    describe_met,
    describe_missed,
    describe_unreachable,
    find_threshold,
    parse_target,
    show_confidence,
    show_missed,
)


def draw(images: int, seed: int = 0, strength: float = 1.5, share: float = 0.4) -> tuple[Floats, NDArray[np.bool_]]:
    """Return probabilities and which images are of the class."""
    random = np.random.default_rng(seed)
    positive = random.random(images) < share
    return 1 / (1 + np.exp(-(random.normal(size=images) + strength * (positive - 0.5)))), positive


def find_by_sorting(scores: Floats, positive: NDArray[np.bool_], target: Target) -> float:
    """Return the threshold of a single bound as versions before several bounds found it."""
    if target.metric == "sensitivity":
        ordered = np.sort(scores[positive])[::-1]
        last = ordered[max(1, math.ceil(target.value * len(ordered) - 1e-9)) - 1]
        below = scores[scores < last]
        return float((last + (below.max() if len(below) else 0.0)) / 2)
    ordered = np.sort(scores[~positive])
    last = ordered[max(1, math.ceil(target.value * len(ordered) - 1e-9)) - 1]
    above = scores[scores > last]
    return float((last + (above.min() if len(above) else 1.0)) / 2)


@given(
    st.integers(0, 10**6), st.integers(2, 60), st.sampled_from(["sensitivity", "specificity"]),
    st.floats(0.01, 1), st.sampled_from([1, 2, 12]),
)  # fmt: skip
def test_thresholds_of_one_bound_are_those_of_before_to_the_bit(
    seed: int, images: int, metric: str, value: float, digits: int
) -> None:
    scores, positive = draw(images, seed)
    scores = np.clip(np.round(scores, digits), 0, 0.999)  # ties
    positive[:2] = True, False
    target = Target(cast("Any", metric), value, "b")
    assert find_threshold(scores, positive, target).threshold == find_by_sorting(scores, positive, target)


def test_score_of_one_can_be_below_a_threshold() -> None:
    scores, positive = np.array([1.0, 1.0, 0.2]), np.array([True, False, False])
    threshold = find_threshold(scores, positive, Target("specificity", 1.0, "b"))
    assert (scores >= threshold.threshold).sum() == 0
    assert threshold.reached == 1


def test_both_bounds_are_reached_with_room_on_both_sides() -> None:
    scores, positive = draw(2000, strength=4)
    target = Target("sensitivity", 0.9, "b", (Bound("specificity", 0.9),))
    threshold = find_threshold(scores, positive, target)
    point = apply_threshold(threshold, scores, positive, None)
    assert not threshold.unreachable
    assert point.is_met
    assert point.sensitivity is not None
    assert point.specificity is not None
    assert min(point.sensitivity, point.specificity) > 0.95, "not at the edge of either bound"
    assert threshold.confidence is not None
    assert threshold.also[0].confidence is not None
    alone = find_threshold(scores, positive, Target("sensitivity", 0.9, "b"))
    assert alone.confidence is not None
    assert min(threshold.confidence, threshold.also[0].confidence) > 0.99 > 0.7 > alone.confidence
    assert describe_unreachable(threshold) is None
    assert "sensitivity=0.9,specificity=0.9:b is met on these images: sensitivity" in describe_met(point)


def test_bound_that_cannot_be_reached_with_the_first_gives_way_and_is_stated() -> None:
    scores, positive = draw(2000, strength=1)
    target = Target("sensitivity", 0.95, "b", (Bound("specificity", 0.95),))
    threshold = find_threshold(scores, positive, target)
    alone = find_threshold(scores, positive, Target("sensitivity", 0.95, "b"))
    assert threshold.threshold == alone.threshold
    assert threshold.unreachable == (Bound("specificity", 0.95),)
    text = describe_unreachable(threshold)
    assert text is not None
    assert "no threshold reaches specificity=0.95 together with the others on the validation images" in text
    point = apply_threshold(threshold, scores, positive, None)
    assert point.is_missed
    assert describe_missed(point).startswith(f"target {target} is not met on these images: specificity ")
    assert show_missed(target, point.to_record()) == f"specificity {100 * point.specificity:.1f}%"  # type: ignore[operator]


def test_ppv_is_that_of_the_stated_prevalence() -> None:
    scores, positive = draw(4000, strength=4, share=0.5)
    target = Target("ppv", 0.6, "b", prevalence=0.05)
    threshold = find_threshold(scores, positive, target)
    point = apply_threshold(threshold, scores, positive, None)
    assert point.sensitivity is not None
    assert point.specificity is not None
    hits, false = point.sensitivity * 0.05, (1 - point.specificity) * 0.95
    assert point.ppv == pytest.approx(hits / (hits + false))
    assert point.is_met
    assert threshold.reached == pytest.approx(point.ppv)
    assert point.ppv_interval is not None
    assert point.ppv_interval.low < threshold.reached < point.ppv_interval.high
    lower = find_threshold(scores, positive, Target("ppv", 0.6, "b", prevalence=0.5))
    assert lower.threshold < threshold.threshold, "a frequent class needs less specificity"


def test_target_that_no_threshold_reaches_takes_the_nearest() -> None:
    scores, positive = draw(300, strength=0.5)
    scores[np.argmax(scores)] = 0.99
    positive[np.argmax(scores)] = False  # the highest score is false: no PPV of 1
    threshold = find_threshold(scores, positive, Target("ppv", 0.9, "b", prevalence=0.01))
    assert threshold.unreachable
    assert 0 < threshold.reached < 0.9
    npv = find_threshold(scores, positive, Target("npv", 0.95, "b", prevalence=0.02))
    assert not npv.unreachable


def test_confidence_is_clopper_pearsons_level() -> None:
    rate = Rate(np.array([47 / 50]), 50.0)
    [confidence] = measure_confidence("sensitivity", 0.9, rate, rate, 0.5)
    # the one-sided lower limit at this level is the bound
    limit = binomtest(47, 50).proportion_ci(2 * confidence - 1).low if confidence > 0.5 else None
    assert limit == pytest.approx(0.9)
    assert confidence == pytest.approx(beta.sf(0.9, 47, 4))
    everything = Rate(np.array([1.0, 0.0]), 45.0)
    assert measure_confidence("specificity", 0.95, rate, everything, 0.5) == pytest.approx([1 - 0.95**45, 0])


@pytest.mark.parametrize("metric", ["sensitivity", "specificity", "ppv", "npv"])
def test_no_number_of_images_shows_that_a_metric_is_one(metric: str) -> None:
    everything = Rate(np.array([1.0, 0.9]), 1e6)
    assert measure_confidence(metric, 1.0, everything, everything, 0.5).tolist() == [0, 0]


def test_threshold_between_neighbouring_floats_decides_as_stated() -> None:
    for low in (0.5, np.nextafter(0.5, 1), 1 - 2**-53):
        scores, positive = np.array([low, np.nextafter(low, 2)]), np.array([False, True])
        threshold = find_threshold(scores, positive, Target("specificity", 1.0, "b"))
        point = apply_threshold(threshold, scores, positive, None)
        assert (threshold.reached, point.specificity, point.sensitivity) == (1, 1, 1)
        assert (scores >= choose_threshold(scores, positive)).tolist() == [False, True]


def test_a_value_just_below_its_target_is_not_rounded_up_to_it() -> None:
    scores = np.repeat([0.9, 0.1, 0.2], [207, 11, 100])  # 207 of 218 are 94.954%
    threshold = Threshold(target=Target("sensitivity", 0.95, "b"), threshold=0.5, reached=207 / 218, images=218)
    point = apply_threshold(threshold, scores, np.arange(318) < 218, None)
    assert "target sensitivity=0.95:b is not met on these images: sensitivity >94.9%, 95% CI [91" in describe_missed(
        point
    )
    assert str(describe_unreachable(threshold)).endswith("set to sensitivity >94.9%")
    assert show_missed(threshold.target, point.to_record()) == "sensitivity >94.9%"
    assert [Bound("npv", 0.95).format(value) for value in (0.9499, 0.95, 0.9996, 0.0)] == [
        ">94.9",
        "95.0",
        ">99.9",
        "0.0",
    ]


def test_target_of_an_absent_class_is_neither_met_nor_missed() -> None:
    scores, positive = draw(200)
    threshold = find_threshold(scores, positive, Target("sensitivity", 0.9, "b"))
    point = apply_threshold(threshold, scores[~positive], positive[~positive], None)
    assert (point.is_met, point.is_missed) == (False, False)
    [result] = point.results
    assert str(result) == "sensitivity -"
    assert show_confidence(result.confidence) == "-"


def test_images_of_one_group_count_as_one() -> None:
    scores, positive = draw(600, strength=4)
    groups = [str(number // 6) for number in range(600)]
    target = Target("sensitivity", 0.9, "b")
    alone, grouped = (find_threshold(scores, positive, target, names) for names in (None, groups))
    assert alone.threshold == grouped.threshold
    assert count_independent(positive, None) == positive.sum()
    assert 60 < count_independent(positive, groups) < 100
    asked = Target("sensitivity", 0.9, "b", confidence=0.9)
    alone, grouped = (find_threshold(scores, positive, asked, names) for names in (None, groups))
    assert grouped.threshold < alone.threshold < find_threshold(scores, positive, target).threshold
    assert alone.confidence is not None
    assert alone.confidence >= 0.9


def test_confidence_that_too_few_images_allow_is_stated() -> None:
    scores, positive = draw(60)
    threshold = find_threshold(scores, positive, Target("sensitivity", 0.95, "b", confidence=0.95))
    assert threshold.reached == 1
    assert threshold.unreachable
    text = describe_unreachable(threshold)
    assert text is not None
    assert "sensitivity 100.0% with confidence " in text


def test_confidence_of_a_predictive_value_agrees_with_draws() -> None:
    """The quadrature agrees with random draws from both confidence distributions."""
    sensitivity, specificity, odds = Rate(np.array([0.9]), 80.0), Rate(np.array([0.95]), 200.0), 0.1 / 0.9
    random = np.random.default_rng(0)
    true, false = random.beta(72, 9, 200_000), 1 - random.beta(190, 11, 200_000)
    [confidence] = measure_confidence("ppv", 0.6, sensitivity, specificity, 0.1)
    assert confidence == pytest.approx(np.mean(true / false * odds >= 1.5), abs=0.01)
    [confidence] = measure_confidence("npv", 0.985, sensitivity, specificity, 0.1)
    missed, right = 1 - random.beta(72, 9, 200_000), random.beta(190, 11, 200_000)
    upper = 1 - random.beta(72, 9, 200_000)
    assert missed.mean() == pytest.approx(upper.mean(), abs=0.01)
    assert confidence == pytest.approx(np.mean(upper * 0.1 / (upper * 0.1 + right * 0.9) <= 0.015), abs=0.01)


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.9, 0.95), (0.99, 0.999), (0.5, 1.0), (0.2, 0.6)])
def test_quadrature_agrees_with_many_quantiles(sensitivity: float, specificity: float) -> None:
    true, false = Rate(np.array([sensitivity]), 100.0), Rate(np.array([specificity]), 2000.0)
    levels = (np.arange(20_000) + 0.5) / 20_000
    error = beta.ppf(levels, (1 - specificity) * 2000 + 1, specificity * 2000)
    for value in (0.02, 0.2, 0.5, 0.9):
        factor = value / (1 - value) * 0.95 / 0.05
        expected = beta.sf(factor * error, 100 * sensitivity, 100 * (1 - sensitivity) + 1).mean()
        assert measure_confidence("ppv", value, true, false, 0.05) == pytest.approx([expected], abs=0.002)


def test_likelihood_ratios_are_near_the_logarithmic_intervals_of_large_samples() -> None:
    # Simel, Samsa and Matchar 1991: log LR +- 1.96 sqrt((1 - sensitivity) / TP + specificity / FP)
    sensitivity = Estimate(0.8, Interval(0.7608, 0.8343))  # Wilson's, 360 of 450
    specificity = Estimate(0.73, Interval(0.6873, 0.7688))  # 328.5 of 450
    positive, negative = estimate_likelihood_ratios(sensitivity, specificity)
    assert positive.value is not None
    assert positive.interval is not None
    assert positive.value == pytest.approx(0.8 / 0.27)
    spread = 1.96 * math.sqrt(0.2 / 360 + 0.73 / 121.5)
    assert positive.interval.low == pytest.approx(positive.value * math.exp(-spread), rel=0.02)
    assert positive.interval.high == pytest.approx(positive.value * math.exp(spread), rel=0.02)
    assert negative.value == pytest.approx(0.2 / 0.73)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.3), st.floats(0.001, 0.3))
def test_interval_of_a_ratio_contains_it_at_all_ends(x: float, y: float, left: float, right: float) -> None:
    first, second = (
        Estimate(value, Interval(max(0.0, value - width), min(1.0, value + width)))
        for value, width in ((x, left), (y, right))
    )
    ratio = estimate_ratio(first, second)
    if ratio.value is None:
        assert x == y == 0
        return
    assert ratio.interval is not None
    assert 0 <= ratio.interval.low <= ratio.value <= ratio.interval.high
    result = update_prevalence(ratio, 0.1)
    assert result.value is not None
    assert result.interval is not None
    assert 0 <= result.interval.low <= result.value <= result.interval.high <= 1


def test_ratio_without_false_positives_has_a_finite_lower_limit() -> None:
    perfect = Estimate(1.0, Interval(0.96, 1.0))
    positive, negative = estimate_likelihood_ratios(Estimate(0.9, Interval(0.8, 0.95)), perfect)
    assert positive.value == math.inf
    assert positive.interval is not None
    assert 15 < positive.interval.low < 25
    assert apply_ratio(math.inf, 0.02) == 1
    assert negative.value == pytest.approx(0.1)
    assert estimate_likelihood_ratios(Estimate(0.0, None), perfect)[0] == UNDEFINED
    assert apply_ratio(10, 0.02) == pytest.approx(0.2 / 1.18)


def test_decision_curve_is_its_definition() -> None:
    scores, positive = draw(400)
    curve = trace_decision_curve("b", scores, positive)
    for threshold, model, everyone in zip(curve.thresholds, curve.model, curve.treat_all, strict=True):
        hits, false = (scores >= threshold) & positive, (scores >= threshold) & ~positive
        odds = threshold / (1 - threshold)
        assert model == pytest.approx((hits.sum() - false.sum() * odds) / 400)
        assert everyone == pytest.approx(positive.mean() - (1 - positive.mean()) * odds)
    [(low, high)] = curve.useful_ranges
    end = "(no CI; short ranges may be chance)."
    assert curve.describe("b").endswith(f"treating all or none at thresholds of {low:.0%} to {high:.0%} {end}")
    useless = trace_decision_curve("b", np.full(400, 0.4), positive)
    assert not useless.useful_ranges
    assert "not better than treating all or none at any threshold" in useless.describe("b")
    rare = trace_decision_curve("b", scores, positive, 0.02)
    assert rare.treat_all[0] == pytest.approx(0.02 - 0.98 / 99)
    several = DecisionCurve(
        name="b",
        prevalence=0.02,
        thresholds=(0.01, 0.02, 0.5, 0.8, 0.9),
        model=(0.3, 0.2, 0.0, 0.1, 0.0),
        treat_all=(0.2, 0.1, 0.0, 0.0, 0.0),
    )
    assert several.describe("b").endswith(f"at thresholds of 1% to 2%, 80% {end}")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("sensitivity=0.95:SICK", Target("sensitivity", 0.95, "SICK")),
        ("sensitivity=0.9,specificity=0.8:a:b", Target("sensitivity", 0.9, "a:b", (Bound("specificity", 0.8),))),
        ("ppv=0.8:SICK@prevalence=0.02", Target("ppv", 0.8, "SICK", prevalence=0.02)),
        ("npv=0.99:a@b@prevalence=0.1,confidence=0.9", Target("npv", 0.99, "a@b", prevalence=0.1, confidence=0.9)),
        ("specificity=0.9:a:b=c", Target("specificity", 0.9, "a:b=c")),
        ("specificity=0.9:x@confidence=0.95", Target("specificity", 0.9, "x", confidence=0.95)),
    ],
)
def test_target_is_parsed_and_printed_alike(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text", ["sensitivity", "sensitivity=2:a", "accuracy=0.9:a", "sensitivity=x:a", "specificity=0.9:"]
)
def test_invalid_target_raises_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read the target"):
        parse_target(text)


def test_target_may_be_in_percent() -> None:
    assert str(parse_target("sensitivity=95%:a")) == "sensitivity=0.95:a"
    assert str(parse_target("ppv=30%:a@prevalence=0.5%")) == "ppv=0.3:a@prevalence=0.005"


def test_predictive_value_needs_a_prevalence() -> None:
    with pytest.raises(UsageError, match=r"ppv=0\.8:a.*depends on how frequent") as caught:
        parse_target("ppv=0.8:a@confidence=0.9")
    assert "ppv=0.8:a@confidence=0.9,prevalence=0.02" in caught.value.remedy
    for text in ("ppv=0.8:a@prevalence=0", "ppv=0.8:a@prevalence=1", "ppv=0.8,ppv=0.9:a@prevalence=0.1"):
        with pytest.raises(UsageError, match="cannot read the target"):
            parse_target(text)


def test_value_that_no_positive_result_defines_is_not_reached_and_can_be_read_again() -> None:
    scores, positive = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, False])
    threshold = find_threshold(scores, positive, parse_target("specificity=1,ppv=0.5:b@prevalence=0.3"))
    assert [reached.value for _, reached in threshold.reached_bounds] == [1, None]
    assert threshold.unreachable == (Bound("ppv", 0.5),)
    text = describe_unreachable(threshold)
    assert text is not None
    assert text.endswith("set to specificity 100.0%, PPV -")
    lowest = find_threshold(1 - scores, ~positive, parse_target("sensitivity=1,npv=0.5:b@prevalence=0.3"))
    for kept in (threshold, lowest):
        calibration = Calibration(weights="", images=4, thresholds=(kept,))
        assert msgspec.convert(json.loads(json.dumps(calibration.to_dict())), Calibration) == calibration


def test_old_records_of_a_target_are_read() -> None:
    target = Target("sensitivity", 0.9, "b")
    assert show_missed(target, 0.85) == "sensitivity 85.0%"
    assert show_missed(target, 0.95) == show_missed(target, None) == ""
    assert show_missed(Target("npv", 0.98, "b", prevalence=0.2), 0.97) == "NPV 97.0%"
    old = Threshold(target=target, threshold=0.5, reached=0.9, images=10)
    assert not old.unreachable
