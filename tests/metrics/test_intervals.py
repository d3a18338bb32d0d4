import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import t as student

from benchmarks.coverage import Scenario, measure
from convnext_cli.metrics.comparison import compare
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import (
    UNDEFINED,
    Estimate,
    Interval,
    bound_sum,
    bound_sums,
    compute_intervals,
    debias_sums,
    estimate_fraction,
    score_interval,
    subtract,
    t_quantile,
)
from convnext_cli.metrics.multilabel import MultilabelCalculator
from convnext_cli.metrics.ordinal import OrdinalCalculator
from convnext_cli.metrics.regression import RegressionCalculator
from convnext_cli.tasks.registry import SINGLE


def test_t_quantile_is_students_and_no_larger_than_that_of_one_degree_of_freedom() -> None:
    for df, tabulated in ((0.75, 12.7062), (1, 12.7062), (2, 4.30265), (3, 3.18245), (10, 2.22814), (1000, 1.96234)):
        assert t_quantile(df) == pytest.approx(tabulated, rel=1e-5)
    assert t_quantile(1.5) == pytest.approx(student.ppf(0.975, 1.5))


def test_fraction_has_wilsons_interval() -> None:
    # 95 of 100, with the variance of a share: Wilson's interval is 88.8% to 97.8% (statsmodels' worked value)
    interval = score_interval(0.95, 0.95 * 0.05 / 100, 1e9)
    assert (interval.low, interval.high) == pytest.approx((0.8882, 0.9785), abs=1e-4)


def test_few_units_widen_wilsons_interval_and_a_range_scales_it() -> None:
    # 5 of 10 images: the bootstrap variance times 10 / 9, so Wilson's interval of 9, with t of 1.5 x 9 degrees
    z2 = student.ppf(0.975, 13.5) ** 2 / 9
    half = (z2 / 4 + z2**2 / 4) ** 0.5 / (1 + z2)
    interval = score_interval(0.5, 0.25 / 10, 10)
    assert (interval.low, interval.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    wide = score_interval(0.0, 4 * 0.25 / 10, 10, low=-1.0)
    assert (wide.low, wide.high) == pytest.approx((-2 * half, 2 * half), abs=1e-4)


def test_interval_of_a_difference_is_movers_and_reaches_from_end_to_end_where_noise_raises_both() -> None:
    one, two = Estimate(0.8, Interval(0.77, 0.86)), Estimate(0.5, Interval(0.42, 0.54))
    for key, down, up in (("top1", 0.05, 0.1), ("ece", 0.03 + 0.04, 0.06 + 0.08)):
        gap = subtract(key, one, two)
        assert gap.interval is not None
        assert (gap.value, gap.interval.low, gap.interval.high) == pytest.approx((0.3, 0.3 - down, 0.3 + up))
    assert subtract("top1", one, UNDEFINED) == subtract("top1", UNDEFINED, one) == UNDEFINED
    assert subtract("top1", one, Estimate(0.8, None)) == subtract("top1", Estimate(0.8, None), one) == Estimate(0, None)


def test_perfect_metric_has_an_interval_of_positive_length() -> None:
    logits, labels = np.eye(2)[[0, 1] * 30] * 5, np.array([0, 1] * 30)
    intervals = compute_intervals(ClassCalculator(logits, labels))
    for name in ("top1", "balanced_accuracy", "macro_roc_auc", "macro_f1", "mcc"):
        interval = intervals.overall[name]
        assert interval is not None
        assert interval.high == pytest.approx(1)
        assert 0.7 < interval.low < 0.97, name
    recall = intervals.per_class[0]["recall"]
    assert recall is not None
    assert recall.low == pytest.approx(30 / (30 + 2.017**2), abs=1e-3), (
        "Wilson's for 30 of 30, with Student's t of 1.5 x 29 degrees"
    )


def test_intervals_contain_the_estimate_and_repeat_with_the_seed() -> None:
    random = np.random.default_rng(1)
    labels = random.choice(3, 200, p=(0.6, 0.3, 0.1))
    logits = random.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels]
    intervals = compute_intervals(ClassCalculator(logits, labels), resamples=300)
    assert intervals == compute_intervals(ClassCalculator(logits, labels), resamples=300)
    assert intervals != compute_intervals(ClassCalculator(logits, labels), resamples=300, seed=1)
    figures = SINGLE.compute_metrics(logits, labels, "abc")
    for name in ClassCalculator.overall:
        interval = intervals.overall[name]
        assert interval is not None
        assert interval.low < getattr(figures, name) < interval.high
    for entry, own in zip(figures.per_class, intervals.per_class, strict=True):
        for name, interval in own.items():
            assert interval is not None
            assert interval.low < getattr(entry, name) < interval.high


def test_repeated_images_within_a_group_do_not_shorten_the_interval() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 80)
    logits = random.normal(size=(80, 2)) + np.eye(2)[labels]
    names = [str(i) for i in range(80)]
    once = compute_intervals(ClassCalculator(logits, labels))
    copied = compute_intervals(
        ClassCalculator(np.repeat(logits, 5, 0), np.repeat(labels, 5)), [n for n in names for _ in range(5)]
    )
    naive = compute_intervals(ClassCalculator(np.repeat(logits, 5, 0), np.repeat(labels, 5)))
    assert (copied.clustered, copied.units, naive.units) == (True, 80, 400)

    def length(intervals: object) -> float:
        interval = intervals.overall["top1"]  # type: ignore[attr-defined]
        return float(interval.high - interval.low)

    assert length(copied) == pytest.approx(length(once), rel=0.1)
    assert length(naive) == pytest.approx(length(once) / 5**0.5, rel=0.1)


def test_image_without_group_is_a_group_of_its_own() -> None:
    logits, labels = np.eye(2)[[0, 1] * 10], np.array([0, 1] * 10)
    assert compute_intervals(ClassCalculator(logits, labels), ["p1"] * 5 + [""] * 15, resamples=200).units == 16


def test_interval_of_roc_auc_is_symmetric_on_the_logit_scale() -> None:
    random = np.random.default_rng(3)
    labels = np.repeat([0, 1], 30)
    calculator = ClassCalculator(random.normal(size=(60, 2)) + 1.5 * np.eye(2)[labels], labels)
    weights = np.vstack([np.ones(60), random.multinomial(60, [1 / 60] * 60, size=2000)])
    value, *replicates = calculator.compute(weights.astype(np.float32))[1]["roc_auc"][:, 1]
    half = student.ppf(0.975, 29) * np.std(replicates) * (30 / 29) ** 0.5 / (value * (1 - value))
    interval = compute_intervals(calculator).per_class[1]["roc_auc"]
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(expit(logit(value) + np.array([-half, half])), abs=0.005)


def test_interval_of_an_average_follows_the_correlation_of_its_classes() -> None:
    labels = np.repeat([0, 1], 60)
    calculator = ClassCalculator(np.random.default_rng(3).normal(size=(120, 2)) + np.eye(2)[labels], labels)
    overall, per_class = calculator.compute(np.ones((1, 120)))
    intervals = compute_intervals(calculator)
    for average, key, correlation in (("macro_roc_auc", "roc_auc", 1), ("balanced_accuracy", "recall", 0)):
        whole, parts = intervals.overall[average], [entry[key] for entry in intervals.per_class]
        assert whole is not None
        one, two = (value - part.low for value, part in zip(per_class[key][0], parts, strict=True) if part is not None)
        expected = (one**2 + two**2 + 2 * correlation * one * two) ** 0.5 / 2
        assert overall[average][0] - whole.low == pytest.approx(expected, rel=0.03)


def test_absent_classes_and_single_images_have_no_interval() -> None:
    intervals = compute_intervals(ClassCalculator(np.eye(3)[[0, 1, 0, 1]], np.array([0, 1, 0, 0])), resamples=200)
    assert intervals.per_class[2]["recall"] is None
    assert intervals.per_class[1]["recall"] is None, "one image says nothing of its spread"
    alone = compute_intervals(ClassCalculator(np.eye(3)[[0]], np.array([0])), resamples=200)
    assert set(alone.overall.values()) == {None}


def test_the_area_of_a_class_with_a_single_image_has_no_interval_however_often_it_is_predicted() -> None:
    labels, logits = np.repeat([0, 1], [60, 1]), np.eye(2)[np.repeat([0, 1], [20, 41])]
    logits[-1] *= 2
    areas = compute_intervals(ClassCalculator(logits, labels), resamples=200).per_class[1]
    assert (areas["roc_auc"], areas["pr_auc"], areas["f1"] is None) == (None, None, False)


@pytest.mark.parametrize("images", [600, 5000])  # sums of float32 differ in their last bits
def test_resamples_that_agree_give_no_interval_without_length(images: int) -> None:
    alike = compute_intervals(ClassCalculator(np.tile([[1.0, 0.2]], (images, 1)), np.zeros(images, int)), resamples=200)
    lengths = [e.high - e.low for e in alike.overall.values() if e is not None]
    assert alike.overall["log_loss"] is None
    assert min(lengths) > 0.5 / images
    two = RegressionCalculator(np.array([1.0, 2.0]), np.array([1.5, 4.0]))  # R2 needs both, so all resamples agree
    assert compute_intervals(two, resamples=200).overall["r2"] is None


def test_average_over_classes_is_unknown_by_the_part_of_a_class_with_a_single_image() -> None:
    labels = np.repeat([0, 1, 2], [40, 30, 1])
    for predicted, sign in ((2, -1), (0, 1)):  # the single image is right, or wrong
        logits = np.eye(3)[np.append(labels[:-1], predicted)] * 4
        calculator = ClassCalculator(logits, labels)
        estimate = calculator.compute(np.ones((1, 71)))[0]["balanced_accuracy"][0]
        interval = compute_intervals(calculator, resamples=200).overall["balanced_accuracy"]
        assert interval is not None
        assert interval.low <= estimate + sign / 3 <= interval.high


def test_average_over_classes_depends_on_those_that_occur_only() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    logits = random.normal(size=(60, 2)) + 2 * np.eye(2)[labels]
    absent = np.full((60, 8), -30.0)  # eight classes that no image has
    two, ten = (ClassCalculator(z, labels) for z in (logits, np.hstack([logits, absent])))
    expected, intervals = (compute_intervals(calculator, resamples=200).overall for calculator in (two, ten))
    for key in ("balanced_accuracy", "macro_precision", "macro_specificity", "macro_f1", "macro_roc_auc"):
        one, other = expected[key], intervals[key]
        assert one is not None
        assert other is not None
        assert (other.low, other.high) == pytest.approx((one.low, one.high)), key


def test_precision_of_a_class_that_is_never_predicted_is_unknown_in_the_average() -> None:
    labels = np.repeat([0, 1, 2], [40, 30, 10])
    calculator = ClassCalculator(4 * np.eye(3)[np.repeat([0, 1], [40, 40])], labels)
    interval = compute_intervals(calculator, resamples=200).overall["macro_precision"]
    assert interval is not None
    estimate = (1 + 0.75 + 0) / 3
    assert interval.low <= estimate
    assert interval.high >= estimate + 1 / 3, "its true precision may be 100%"


def test_errors_in_grades_have_intervals_within_the_grades_also_where_all_are_equal() -> None:
    labels = np.repeat([0, 1, 2, 3], [20, 6, 3, 3])
    predictions = np.concatenate([labels[:20], labels[20:26] + 1, [2, 3, 2], [2, 2, 2]])
    intervals = compute_intervals(OrdinalCalculator(np.eye(4)[predictions], labels, predictions), resamples=300)
    by_grade = [entry["class_mae"] for entry in intervals.per_class]
    for interval, estimate in zip(by_grade, (0, 1, 1 / 3, 1), strict=True):
        assert interval is not None
        assert 0 <= interval.low <= estimate <= interval.high < 3
        assert interval.high - interval.low > 0.3


def test_fraction_of_clustered_images_has_a_wider_interval() -> None:
    hits, counted = np.array([True] * 28 + [False] * 12), np.ones(40, bool)
    for groups, number in (None, 40), ([str(i // 4) for i in range(40)], 10):  # 7 of 10 groups
        interval, expected = (
            estimate_fraction(hits, counted, groups).interval,
            score_interval(0.7, 0.21 / number, number),
        )
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert estimate_fraction(hits, ~counted, None) == UNDEFINED
    assert estimate_fraction(hits, counted, ["p1"] * 40) == Estimate(0.7, None), "one group says nothing of the spread"


@pytest.mark.parametrize("scenario", [Scenario("plain", 2.0, 1, 0.0), Scenario("clustered", 2.0, 5, 0.5)])
def test_intervals_have_their_nominal_coverage(scenario: Scenario) -> None:
    # two standard errors of 95% in 100 data sets are 4.4 points; benchmarks/coverage.py has the 2,000
    ours = measure(scenario, 100, 500, 150, truth_images=100_000, map_function=map)[1]
    assert ours.min() >= 0.86
    assert 0.93 < ours.mean() < 0.985


def test_debiased_sum_is_the_one_that_noise_makes_the_observed_sum() -> None:
    random = np.random.default_rng(0)
    gaps, std = random.normal(size=(3, 15)), random.uniform(0.2, 1, 15)
    gaps[2] *= 0.3  # less than noise alone gives
    scales = debias_sums(gaps, std) / np.abs(gaps).sum(axis=1)
    noise = std * random.normal(size=(200_000, 15))
    for row in range(2):
        assert 0 < scales[row] < 1
        mean = np.abs(scales[row] * gaps[row] + noise).sum(axis=1).mean()
        assert mean == pytest.approx(np.abs(gaps[row]).sum(), rel=2e-3)
    assert scales[2] == 0
    assert np.abs(noise).sum(axis=1).mean() > np.abs(gaps[2]).sum()


@pytest.mark.parametrize("size", [0.0, 1.0, 4.0])
def test_interval_of_a_sum_of_absolute_values_has_its_coverage(size: float) -> None:
    """In units of the noise the true values are 0, about 1, or about 4; the plug-in sum is 15 times 0.8 at 0."""
    random = np.random.default_rng(int(size))
    true = size * random.uniform(0.5, 1.5, 15) * random.choice([-1, 1], 15)
    covered, holds_estimate, total = [], [], 100.0  # gaps are fractions: their sum is below 1
    for _ in range(400):
        sample = true + random.normal(size=15)
        interval = bound_sum(sample / total, (sample + random.normal(size=(300, 15))) / total, 1e6, 1e6)
        assert interval is not None
        covered.append(interval.low <= np.abs(true / total).sum() <= interval.high)
        holds_estimate.append(interval.low <= np.abs(sample / total).sum() <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)
    assert all(holds_estimate)


def test_interval_of_a_sum_allows_for_the_noise_that_resamples_of_few_images_in_a_bin_lack() -> None:
    random = np.random.default_rng(0)
    gaps, noise = random.normal(size=15) / 100, random.normal(size=(300, 15)) / 100
    few = bound_sum(gaps, gaps + noise, 1000, 20 * 15)
    many = bound_sum(gaps, gaps + noise * (20 / 19 * 999 / 1000) ** 0.5, 1000, 1e9)
    assert few is not None
    assert many is not None
    assert (few.low, few.high) == pytest.approx((many.low, many.high))
    for sample, replicates, units in ((0 * gaps, noise, 9), (gaps, gaps + noise, 1.2), (gaps, noise[:1], 9)):
        assert bound_sum(sample, replicates, units, 1e9) is None
    assert bound_sum(gaps, np.tile(gaps, (9, 1)), 9, 1e9) is None


def test_interval_of_the_ece_of_few_images_of_an_over_confident_model_has_its_coverage() -> None:
    def draw(images: int, seed: int) -> ClassCalculator:
        random = np.random.default_rng(seed)
        logits = 1.5 * random.normal(size=(images, 3))
        cumulated = np.exp(logits).cumsum(axis=1)
        labels = (random.random(images)[:, None] > cumulated / cumulated[:, -1:]).sum(axis=1)
        return ClassCalculator(6 * logits, labels)

    true = draw(100_000, seed=1000).compute(np.ones((1, 100_000)))[0]["ece"][0]
    intervals = [bound_sums(draw(30, seed), np.arange(30))[0]["ece"] for seed in range(200)]
    assert np.mean([interval.low <= true <= interval.high for interval in intervals]) > 0.93


def test_images_without_a_known_label_do_not_narrow_intervals() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(2, size=(8, 2)).astype(np.float32)
    logits = (4 * targets - 2).astype(np.float32)  # all right
    doubtful = (logits * random.uniform(0.1, 1, targets.shape)).astype(np.float32)
    unknown = np.full((80, 2), -1, np.float32)
    few, many = (
        [
            MultilabelCalculator(np.concatenate([part, rest]), np.concatenate([targets, rest]))
            for part in (logits, doubtful)
        ]
        for rest in (unknown[:0], unknown)
    )
    before, after = (compute_intervals(pair[1]).overall for pair in (few, many))
    assert before["exact_match"] == after["exact_match"], "that of 8 of 8 images, not of 88"

    def measure(interval: Interval | None) -> float:
        assert interval is not None
        return interval.high - interval.low

    assert measure(after["log_loss"]) == pytest.approx(measure(before["log_loss"]), rel=0.1)
    lengths = []
    for one, two in (few, many):
        difference = compare(one, two).differences["log_loss"]
        assert difference is not None
        lengths.append(measure(difference.interval))
    assert lengths[1] == pytest.approx(lengths[0], rel=0.1)
