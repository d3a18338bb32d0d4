"""The metrics, a row each: key, title, unit, range, direction, formula. Everything that prints metrics asks here.

`metrics.formulas` computes them, by the same keys. Keys are those of `Metrics`, `ClassMetrics` and the JSON files of a
run. The module imports nothing heavy, so that the command line can use it at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from convnext_cli.text import capitalise, format_inside, format_percent

if TYPE_CHECKING:
    from convnext_cli.metrics.comparison import Difference
    from convnext_cli.metrics.intervals import Interval

MISSING = "-"  # printed where a metric is not defined


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric and how it is printed."""

    key: str
    title: str
    """In sentences and wide tables, in lower case."""
    short: str
    """In narrow tables."""
    meaning: str
    """In plain words, for a reader who does not know the metric."""
    formula: str
    """In words, with its source where there are several definitions."""
    unit: Literal["%", ""] = "%"
    """`%`: printed as 100 times the value."""
    digits: int = 1
    """Decimals printed."""
    has_target_unit: bool = False
    """True for the unit of the targets: a value that decimals do not suit is printed with an exponent, `1.006e-11`."""
    low: float = 0.0
    """Smallest possible value."""
    high: float = 1.0
    """Largest possible value; infinite where there is none."""
    higher_is_better: bool = True
    is_raised_by_noise: bool = False
    """True for a sum of absolute values, which is too high in a small sample."""
    average_of: str | None = None
    """Key of the per-class metric that this one is the mean of, over the classes that occur."""

    @property
    def heading(self) -> str:
        """The title with its unit, for a table."""
        return f"{self.title} {self.unit}".rstrip()

    @property
    def short_heading(self) -> str:
        """The short title with its unit, for a narrow table."""
        return f"{self.short} {self.unit}".rstrip()

    @property
    def explanation(self) -> str:
        """Meaning and formula as two sentences."""
        return f"{capitalise(self.meaning)}. {capitalise(self.formula)}."

    @property
    def scale(self) -> float:
        """The factor of a value before it is printed."""
        return 100.0 if self.unit == "%" else 1.0

    def format(self, value: float | None) -> str:
        """Return a value for a table whose heading has the unit: `61.3`, or `-` where it is not defined."""
        return MISSING if value is None else self._write(value)

    def format_signed(self, difference: float) -> str:
        """Return a difference for a table, with its sign: `+1.2`."""
        return self._write(difference, "+")

    def _write(self, value: float, sign: str = "") -> str:
        is_plain = value == 0 or 0.01 <= abs(value) < 1e6
        style = "f" if is_plain or not self.has_target_unit else "g"
        if sign or style == "g":
            return f"{self.scale * value:{sign}.{self.digits}{style}}"
        return format_inside(self.scale * value, self.digits, self.scale * self.low, self.scale * self.high)

    def format_with_unit(self, value: float | None) -> str:
        """Return a value for a sentence: `61.3%`."""
        return MISSING if value is None else f"{self.format(value)}{self.unit}"

    def format_ci(self, interval: "Interval | None") -> str:
        """Return a 95% CI without the unit: `[55.0, 67.1]`, or nothing where there is none."""
        return format_ci(interval, self._write)

    def list_cells(self, value: float | None, interval: "Interval | None") -> tuple[str, str]:
        """Return a value and its 95% CI, for two columns of a table."""
        return self.format(value), self.format_ci(interval) or MISSING

    def format_estimate(self, value: float | None, interval: "Interval | None") -> str:
        """Return a value with its 95% CI, for a sentence: `61.3%, 95% CI [55.0, 67.1]`, or `not defined`."""
        if value is None:
            return "not defined"
        ci = self.format_ci(interval)
        return f"{self.format_with_unit(value)}, 95% CI {ci}" if ci else self.format_with_unit(value)

    def format_difference(self, difference: "Difference | None") -> str:
        """Return a difference with its 95% CI, for a sentence: `+1.2 points, 95% CI [-0.3, +2.7]`."""
        if difference is None:
            return MISSING
        points = " points" if self.unit == "%" else ""
        ci = format_ci(difference.interval, self.format_signed)
        return f"{self.format_signed(difference.value)}{points}{', 95% CI ' * bool(ci)}{ci}"


_write_percent = partial(format_percent, digits=1)


def format_ci(interval: "Interval | None", write: Callable[[float], str] = _write_percent) -> str:
    """Return a 95% CI as it is printed everywhere, `[61.3, 74.5]`; an empty string where there is none.

    `write` prints one end of it.
    """
    return f"[{write(interval.low)}, {write(interval.high)}]" if interval else ""


OVERALL = (
    Metric(
        key="top1", title="accuracy", short="accuracy",
        meaning="how often the predicted class is right",
        formula="fraction of images classified correctly",
    ),
    Metric(
        key="balanced_accuracy", title="balanced accuracy", short="balanced acc.",
        meaning="how often the predicted class is right if all classes are equally frequent",
        formula="mean sensitivity over classes", average_of="recall",
    ),
    Metric(
        key="macro_precision", title="macro precision", short="precision",
        meaning="how often a predicted class is right, averaged over classes",
        formula="mean precision over classes; 0 for a class that is never predicted", average_of="precision",
    ),
    Metric(
        key="macro_specificity", title="macro specificity", short="specificity",
        meaning="how often a class is rightly not predicted, averaged over classes",
        formula="mean specificity over classes", average_of="specificity",
    ),
    Metric(
        key="macro_f1", title="macro F1", short="macro F1",
        meaning="balance of missed images and false alarms, averaged over classes; 100% is perfect",
        formula="mean F1 over classes", average_of="f1",
    ),
    Metric(
        key="macro_roc_auc", title="macro ROC AUC", short="ROC AUC",
        meaning="how often an image of a class gets a higher score than another image; 50% is chance",
        formula="mean ROC AUC over classes, one-vs-rest", average_of="roc_auc",
    ),
    Metric(
        key="macro_pr_auc", title="macro PR AUC", short="PR AUC",
        meaning="precision averaged over all sensitivities; chance is the fraction of images of the class",
        formula="mean average precision over classes, one-vs-rest", average_of="pr_auc",
    ),
    Metric(
        key="kappa", title="Cohen's kappa", short="kappa", unit="", digits=3, low=-1.0,
        meaning="agreement with the labels beyond chance; 0 is chance, 1 is perfect",
        formula="(observed - chance agreement) / (1 - chance agreement); Cohen 1960",
    ),
    Metric(
        key="mcc", title="MCC", short="MCC", unit="", digits=3, low=-1.0,
        meaning="correlation of predictions and labels; 0 is chance, 1 is perfect",
        formula="Matthews correlation coefficient for K classes; Gorodkin 2004",
    ),
    Metric(
        key="log_loss", title="log loss", short="log loss", unit="", digits=4, high=math.inf, higher_is_better=False,
        meaning="penalty for low probabilities of what is true; 0 is perfect, confident errors cost most",
        formula="mean negative log-likelihood of the true class, or of each known label's value, in nats",
    ),
    Metric(
        key="brier", title="Brier score", short="Brier", unit="", digits=4, higher_is_better=False,
        meaning="squared distance of the probabilities from the labels; 0 is perfect",
        formula="mean squared error of the probabilities, halved: 0 to 1 for any number of classes",
    ),
    Metric(
        key="ece", title="ECE", short="ECE", higher_is_better=False, is_raised_by_noise=True,
        meaning="difference of confidence and accuracy, on average; 0% is perfect",
        formula="expected calibration error of the predicted class, 15 equal-mass bins; Nixon et al. 2019",
    ),
)  # fmt: skip
"""Metrics of a whole evaluation."""

PER_CLASS = (
    Metric(
        key="precision", title="precision", short="precision",
        meaning="of the images predicted as the class, the fraction that is of it",
        formula="TP / (TP + FP)",
    ),
    Metric(
        key="recall", title="sensitivity (recall)", short="sensitivity",
        meaning="of the images of the class, the fraction that is predicted as it",
        formula="TP / (TP + FN)",
    ),
    Metric(
        key="specificity", title="specificity", short="specificity",
        meaning="of the images of other classes, the fraction that is not predicted as it",
        formula="TN / (TN + FP)",
    ),
    Metric(
        key="f1", title="F1", short="F1",
        meaning="balance of missed images and false alarms; 100% is perfect",
        formula="2 TP / (2 TP + FP + FN)",
    ),
    Metric(
        key="roc_auc", title="ROC AUC", short="ROC AUC",
        meaning="how often an image of the class gets a higher score than another image; 50% is chance",
        formula="area under the ROC curve; ties count half",
    ),
    Metric(
        key="pr_auc", title="PR AUC", short="PR AUC",
        meaning="precision averaged over all sensitivities; chance is the fraction of images of the class",
        formula="average precision, one step per distinct score",
    ),
)  # fmt: skip
"""Metrics of one class against the rest (TP, FP, TN, FN: true and false positives and negatives)."""

MULTILABEL = (
    Metric(
        key="macro_recall", title="macro sensitivity", short="sensitivity",
        meaning="of the images with a label, the fraction that is predicted with it, averaged over labels",
        formula="mean sensitivity over labels",
        average_of="recall",
    ),
    Metric(
        key="macro_brier", title="Brier score", short="Brier", unit="", digits=4, higher_is_better=False,
        meaning="squared distance of the probabilities from the labels; 0 is perfect",
        formula="mean over labels of the mean squared error of their probability", average_of="label_brier",
    ),
    Metric(
        key="macro_ece", title="ECE", short="ECE", higher_is_better=False, is_raised_by_noise=True,
        meaning="difference of probability and frequency of a label, on average; 0% is perfect",
        formula="mean over labels of their expected calibration error, 15 equal-mass bins", average_of="label_ece",
    ),
    Metric(
        key="exact_match", title="exact match", short="exact match",
        meaning="how often all labels of an image are right",
        formula="fraction of images of which all known labels are predicted correctly",
    ),
)  # fmt: skip
"""Metrics that only several labels per image have; macro ROC AUC, PR AUC, F1 and the log loss they share."""

PER_LABEL = (
    Metric(
        key="label_brier", title="Brier score", short="Brier", unit="", digits=4, higher_is_better=False,
        meaning="squared distance of the probability from the label; 0 is perfect",
        formula="mean squared error of the label's probability",
    ),
    Metric(
        key="label_ece", title="ECE", short="ECE", higher_is_better=False, is_raised_by_noise=True,
        meaning="difference of probability and frequency of the label, on average; 0% is perfect",
        formula="expected calibration error of the label's probability, 15 equal-mass bins",
    ),
)  # fmt: skip
"""Metrics that only a label has, beside those of a class."""

ORDINAL = (
    Metric(
        key="quadratic_kappa", title="quadratic weighted kappa", short="QWK", unit="", digits=3, low=-1.0,
        meaning="agreement with the grades beyond chance, large errors count most; 0 is chance, 1 is perfect",
        formula="1 - weighted disagreement / that by chance, weights (i - j)^2; Cohen 1968",
    ),
    Metric(
        key="grade_mae", title="MAE in grades", short="MAE", unit="", digits=3, high=math.inf, higher_is_better=False,
        meaning="by how many grades a prediction is off, on average",
        formula="mean absolute difference of predicted and true grade",
    ),
    Metric(
        key="within_one", title="accuracy within one grade", short="within 1",
        meaning="how often a prediction is at most one grade off",
        formula="fraction of images whose predicted grade differs by at most one",
    ),
)  # fmt: skip
"""Metrics that only ordered grades have."""

PER_GRADE = (
    Metric(
        key="class_mae", title="MAE in grades", short="MAE", unit="", digits=3, high=math.inf, higher_is_better=False,
        meaning="by how many grades a prediction is off for images of the grade, on average",
        formula="mean absolute difference of predicted and true grade, over images of the grade",
    ),
)  # fmt: skip
"""Metrics that only a grade has, beside those of a class."""

REGRESSION = (
    Metric(
        key="mae", title="MAE", short="MAE", unit="", digits=4, high=math.inf, higher_is_better=False,
        has_target_unit=True,
        meaning="how far a prediction is off, on average", formula="mean absolute error, in units of the target",
    ),
    Metric(
        key="rmse", title="RMSE", short="RMSE", unit="", digits=4, high=math.inf, higher_is_better=False,
        has_target_unit=True,
        meaning="typical error, where large errors count most", formula="square root of the mean squared error",
    ),
    Metric(
        key="r2", title="R2", short="R2", unit="", digits=3, low=-math.inf,
        meaning="fraction of the labels' variation that the predictions explain; 0 is chance, 1 is perfect",
        formula="1 - mean squared error / variance of the target",
    ),
    Metric(
        key="pearson", title="Pearson correlation", short="Pearson", unit="", digits=3, low=-1.0,
        meaning="how closely predictions and labels lie on a line; 0 is chance, 1 is perfect",
        formula="covariance of prediction and target / product of their standard deviations",
    ),
    Metric(
        key="bias", title="bias", short="bias", unit="", digits=4, low=-math.inf, high=math.inf,
        has_target_unit=True,
        meaning="how much higher predictions are than labels, on average",
        formula="mean of prediction - target; Bland and Altman 1986",
    ),
    Metric(
        key="limit_low", title="lower limit of agreement", short="lower limit", unit="", digits=4, low=-math.inf,
        high=math.inf,
        has_target_unit=True,
        meaning="about 95% of the errors lie between the limits of agreement",
        formula="bias - 1.96 standard deviations of the differences; Bland and Altman 1986",
    ),
    Metric(
        key="limit_high", title="upper limit of agreement", short="upper limit", unit="", digits=4, low=-math.inf,
        high=math.inf,
        has_target_unit=True,
        meaning="about 95% of the errors lie between the limits of agreement",
        formula="bias + 1.96 standard deviations of the differences; Bland and Altman 1986",
    ),
    Metric(
        key="coverage", title="coverage of 90% prediction intervals", short="coverage",
        meaning="how often the true number lies in its prediction interval; 90% is intended",
        formula="fraction of images whose target lies in its prediction interval",
    ),
)  # fmt: skip
"""Metrics of a predicted number."""

OPERATING = (
    Metric(
        key="ppv", title="PPV", short="PPV",
        meaning="of the positive results, the fraction that is right (positive predictive value)",
        formula="sensitivity x prevalence / probability of a positive result; Altman and Bland 1994",
    ),
    Metric(
        key="npv", title="NPV", short="NPV",
        meaning="of the negative results, the fraction that is right (negative predictive value)",
        formula="specificity x (1 - prevalence) / probability of a negative result; Altman and Bland 1994",
    ),
    Metric(
        key="positive_ratio", title="positive likelihood ratio", short="LR+", unit="", digits=2, high=math.inf,
        meaning="factor by which a positive result raises the odds of the class; 1 is useless, 10 is strong",
        formula="sensitivity / (1 - specificity); Deeks and Altman 2004",
    ),
    Metric(
        key="negative_ratio", title="negative likelihood ratio", short="LR-", unit="", digits=3, high=math.inf,
        higher_is_better=False,
        meaning="factor by which a negative result lowers the odds of the class; 1 is useless, 0.1 is strong",
        formula="(1 - sensitivity) / specificity; Deeks and Altman 2004",
    ),
    Metric(
        key="target_confidence", title="confidence", short="confidence",
        meaning="confidence that the true value is at least the target, not only on these images",
        formula="one-sided limit of Clopper and Pearson 1934 of the effective number of groups",
    ),
)  # fmt: skip
"""Metrics of a decision at a threshold; sensitivity and specificity they share."""

METRICS = {
    metric.key: metric
    for metric in (*OVERALL, *PER_CLASS, *MULTILABEL, *PER_LABEL, *ORDINAL, *PER_GRADE, *REGRESSION, *OPERATING)
}
"""All metrics by key."""
