"""The interface of all tasks: targets, model outputs, metrics, calibration, and how they are shown.

A task works on arrays and text, without torch. `training.parts.loss` has the losses and `exports.wrapper` the
activations, both by the names that a task gives them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Calculator, Floats, Ints
from convnext_cli.metrics.pooling import MEAN, Rule
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import Fraction, MetricSet
from convnext_cli.tasks.reading import RawTargets, Table, TableOptions, explain_columns
from convnext_cli.text import format_count, shorten_names

MIN_VAL_PER_CLASS = 5

Targets = NDArray[Any]
"""Targets of N images: (N,) classes or grades, (N, K) labels, or (N,) numbers. A task knows which."""


class Scaling(Struct, frozen=True, kw_only=True):
    """The part of a calibration that changes model outputs; fitted on validation images or groups."""

    temperature: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """The divisor of the logits."""
    label_scale: tuple[float, ...] = ()
    """Factor of each label's logit; empty where there is one temperature for all classes."""
    label_offset: tuple[float, ...] = ()
    """Number that is added to each class's or label's logit after that."""
    label_thresholds: tuple[Fraction, ...] = ()
    """Probability from which on a label is predicted, for each label."""
    margin: Annotated[float, Meta(ge=0)] | None = None
    """Half the length of a 90% prediction interval, in the units of the model's output; of a number only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Display:
    """The metrics that are shown of a task, by their keys in `metrics.registry`."""

    headline: str
    """The metric by which the best epoch is chosen; it stands first everywhere."""
    loss: str
    """The validation loss in the training log."""
    epoch: tuple[str, ...]
    """Of each epoch."""
    folds: tuple[str, ...]
    """Of each fold of a cross-validation."""
    table: tuple[str, ...]
    """Of an evaluation."""
    class_counts: tuple[tuple[str, str], ...]
    """Numbers of images of each class, as attribute and title."""
    class_estimates: tuple[str, ...]
    """Of each class, with their 95% CIs."""
    class_values: tuple[str, ...]
    """Of each class, without."""
    compared: tuple[str, ...]
    """Of two runs."""
    card: tuple[str, ...]
    """Of the model card."""
    plots: tuple[str, ...]
    """Names of the report's plots, in `reports.plots`."""
    subgroups: tuple[str, ...]
    """Of a subgroup of images, whose gap to the rest is tested: overall metrics."""
    subgroups_of_two: tuple[str, ...] = ()
    """The same where there are two classes: metrics of the positive one, or overall ones; empty for `subgroups`."""
    target_word: str = "class"
    """The word for a target in headings and sentences."""
    target_words: str = "classes"
    strata: str = "classes"
    """The word for the strata of `number_strata`, by which splits are drawn."""
    class_order: str | None = None
    """Of each class: the metric by which the report sorts them, the best first; None keeps their order."""
    curves_heading: str = "Curves"
    confidence_axes: tuple[str, str] = ("confidence (probability of the predicted class)", "accuracy")
    """Of the reliability plot."""
    confidence_note: str = (
        "Images are sorted by confidence into 15 bins of equal size. On the dotted line, confidence equals accuracy. "
        "Above it the model is under-confident, below it over-confident."
    )
    calibration: tuple[tuple[str, str], ...] = ()
    """Metrics that calibration changes, shown before and after: the field of `Calibration`, and the metric's key."""
    uncalibrated: str = "not calibrated"
    """The words for a model without a calibration."""
    recalibrated: tuple[str, ...] = ()
    """Metrics that a new calibration changes; empty for those of `calibration` and `compared`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chance:
    """The headline metric of a constant prediction (chance level)."""

    value: float
    """Of the task's headline metric."""
    text: str
    """In a sentence."""
    logits: Floats | None = None
    """The model outputs of that prediction, (N, K), where the value depends on the images; None where it is fixed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """A model's prediction for one image."""

    classes: tuple[str, ...] = ()
    """All class or label names, the most probable first."""
    probabilities: tuple[float, ...] = ()
    """Their calibrated probabilities."""
    labels: tuple[str, ...] | None = None
    """The predicted labels, the most probable first; None where each image has exactly one class."""
    value: float | None = None
    """The predicted number or mean grade; None for classes and labels."""
    interval: tuple[float, float] | None = None
    """The 90% prediction interval of `value`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task(ABC):
    """The kind of prediction for an image: a class, labels, a grade or a number."""

    name: ClassVar[str]
    title: ClassVar[str]
    """In sentences."""
    loss: ClassVar[str]
    """Name of the loss, in `training.parts.loss`."""
    scores: ClassVar[str] = "probabilities"
    """Name of the scores in exported files."""
    metrics: ClassVar[type[MetricSet]]
    """The class of `compute_metrics`."""
    display: ClassVar[Display]
    has_values: ClassVar[bool] = False
    """True if the targets are `Index.values`, not the classes `Index.labels`."""
    has_order: ClassVar[bool] = False
    """True if the order of the classes counts, as that of grades."""
    is_continuous: ClassVar[bool] = False
    """True if the targets are numbers, so that hardly two images have the same."""
    problem_type: ClassVar[str | None] = None
    """The name that transformers has for the task, which decides what its pipeline applies; None for its default."""
    columns: ClassVar[tuple[str, ...]]
    """The CSV columns of a prediction, without the probability of each class."""
    has_several: ClassVar[bool] = False
    """True if an image may have several of the classes, each of which has its own explanation."""
    unsupported: ClassVar[dict[str, str]] = {"class_weights=asymmetric": "it is for several labels per image"}
    """Settings that do not apply, or `SETTING=VALUE`, each with the reason."""
    ignored: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("blank", "label_sep", "uncertain"), "it is for several labels per image"),
        "log_target": "it is for a number per image",
        "grades": "it is for --task ordinal",
    }
    """Settings without effect, each with the reason. They are refused where the user sets them, but not in a plan."""
    pooling: ClassVar[tuple[Rule, ...]] = (MEAN,)
    """The rules that may pool the images of a group."""
    has_negative: ClassVar[bool] = False
    """True if one class may stand for no finding, which any other class of a group's images outweighs."""

    def to_dict(self) -> dict[str, Any]:
        """Return name and parameters as plain values; `registry.read_task` reads them."""
        return {"name": self.name, **asdict(self)}

    # Reading

    @classmethod
    def recognises(cls, table: Table, name: str, options: TableOptions) -> bool:
        """Return True if a column's cells have the form of this task's targets; asked if no task is named."""
        return False

    @classmethod
    @abstractmethod
    def read_cells(cls, table: Table, name: str, options: TableOptions) -> RawTargets:
        """Return the targets that one column holds.

        Raises:
            OtherTaskError: the cells are not of this task.
            DataError: a cell is empty.
        """

    @classmethod
    def read_columns(
        cls, table: Table, names: Sequence[str], options: TableOptions, *, has_label: bool = False
    ) -> RawTargets:
        """Return the targets that a column for each label or class holds, of 1, 0, -1 and blank cells.

        `has_label` is True if another column may hold the targets.

        Raises:
            OtherTaskError: the columns are not of this task.
            DataError: a cell is something else.
        """
        raise explain_columns(cls.name, table, names)

    @classmethod
    @abstractmethod
    def read_folders(
        cls, folder: Path, classes: Sequence[str], labels: Sequence[str], options: TableOptions
    ) -> RawTargets:
        """Return the targets of images in class folders.

        `classes` are the folders' names, and `labels` the name for each image.

        Raises:
            DataError: class folders cannot give this task's targets.
        """

    @classmethod
    def suggest(cls, classes: Sequence[str], *, from_folders: bool) -> str:
        """Return a note that classes with such names may be targets of this task; empty if nothing says so."""
        return ""

    # Targets

    @abstractmethod
    def stack_targets(self, labels: Sequence[int], values: Sequence[tuple[float, ...]]) -> Targets:
        """Return the targets of some images as an array.

        Args:
            labels: the class of each image, or its stratum where `values` hold the targets.
            values: the numbers of each image; empty where `labels` are the targets.
        """

    def describe_classes(self, classes: Sequence[str]) -> str:
        """Return the number of classes or labels, or the name of the number, in words."""
        return format_count(len(classes), "class")

    @classmethod
    def advise_imbalance(cls, rare: str) -> str:
        """Return the metrics and the correction that suit a data set with few images of a class."""
        return (
            f"judge by balanced accuracy and the recall of {rare}, not by accuracy; --imbalance sampler draws {rare} "
            "more often"
        )

    def number_strata(self, values: Sequence[tuple[float, ...]]) -> list[int]:
        """Return a number for each image, equal for images with alike targets."""
        return [0] * len(values)

    @abstractmethod
    def count(self, targets: Targets, num_classes: int) -> list[int]:
        """Return the number of images of each class, (K,)."""

    @abstractmethod
    def list_strata(self, targets: Targets) -> list[tuple[int, ...]]:
        """Return the strata of each image; each split gets its part of every stratum."""

    def describe_values(self, values: tuple[float, ...], classes: Sequence[str]) -> str:
        """Return the target of one image in words, where it is not one class."""
        return ", ".join(f"{value:g}" for value in values)

    def find_conflict(self, targets: Targets) -> bool:
        """Return True if images that should have one target have different ones."""
        return len(np.unique(targets, axis=0)) > 1

    def align(self, targets: Targets, positions: Sequence[int], num_classes: int) -> Targets:
        """Return targets whose classes are numbered anew: class k becomes `positions[k]` of `num_classes`."""
        return targets

    def explain_untrainable(self, targets: Targets, classes: Sequence[str]) -> tuple[str, str] | None:
        """Return why training targets cannot be learned from, and the remedy; None if they can."""
        return None

    def explain_small_validation(self, targets: Targets, classes: Sequence[str]) -> str:
        """Return which classes have too few validation images to choose the best epoch by; an empty string if none."""
        return self._describe_few(self._list_few(classes, self.count(targets, len(classes))))

    def _list_few(self, classes: Sequence[str], counts: Sequence[int]) -> list[str]:
        """Return the classes that have too few validation images, with their numbers."""
        pairs = zip(classes, counts, strict=True)
        return [f"{n} of {self.describe_name(name)}" for name, n in pairs if n < MIN_VAL_PER_CLASS]

    @staticmethod
    def _describe_few(few: Sequence[str]) -> str:
        """Return the classes that `_list_few` returns for a sentence, with the number that each needs."""
        return f"{shorten_names(few)}; {MIN_VAL_PER_CLASS} of each are needed" if few else ""

    def describe_name(self, name: str) -> str:
        """Return the name of a target for a sentence; the task's word is before a number: `grade 2`."""
        return f"{self.display.target_word} {name}" if name.isdecimal() else name

    def fit_targets(self, targets: Targets) -> Self:
        """Return the task with the parameters that follow from the training targets."""
        return self

    # Model outputs

    def count_outputs(self, num_classes: int) -> int:
        """Return the width of the model's output."""
        return num_classes

    @abstractmethod
    def activate(self, logits: Floats) -> NDArray[np.float64]:
        """Return scores (N, K) of calibrated logits (N, K)."""

    def calibrate(self, logits: Floats, scaling: Scaling | None) -> Floats:
        """Return the calibrated logits, (N, K)."""
        return logits / (scaling.temperature if scaling else 1.0)

    def list_affine(self, scaling: Scaling | None) -> tuple[Sequence[float], Sequence[float]] | None:
        """Return factor and offset of each logit before the activation; None where a temperature divides all."""
        return None

    @property
    @abstractmethod
    def activation(self) -> str:
        """Name of the function from calibrated logits to scores, in `exports.wrapper`."""

    @property
    def score_unit(self) -> float:
        """Size of a score, by which the differences of an exported file's scores are divided."""
        return 1.0

    @abstractmethod
    def describe_calibration(self, scaling: Scaling) -> str:
        """Return in words what was fitted, such as `temperature 1.20`."""

    @abstractmethod
    def describe_scores(self, scaling: Scaling | None) -> str:
        """Return in words how the scores follow from the logits, such as `softmax(logits / 1.2)`."""

    @abstractmethod
    def describe_decision(self, scaling: Scaling | None) -> str:
        """Return in a sentence how the prediction follows from the scores."""

    @abstractmethod
    def fit_calibration(self, logits: Floats, targets: Targets, groups: Sequence[str] | None) -> Scaling:
        """Fit a calibration on validation images; the groups are N names, None where they are not known."""

    def list_uncalibrated(self, scaling: Scaling, classes: Sequence[str]) -> list[str]:
        """Return the labels that had too few images to fit their calibration."""
        return []

    @abstractmethod
    def average(self, logits: Sequence[Floats]) -> Floats:
        """Return the logits of an ensemble, (N, K), from its members' calibrated logits, each (N, K)."""

    def select_known(self, targets: Targets, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which images are of class k, and for which images that is known, both (N,)."""
        return targets == k, np.ones(len(targets), np.bool_)

    @abstractmethod
    def decide(self, scores: Floats, scaling: Scaling | None) -> NDArray[Any]:
        """Return the decision for each image from its scores (N, K): a class, or True for each label."""

    @abstractmethod
    def is_correct(self, decision: Any, target: Any) -> bool:
        """Return True if the decision for one image agrees with its target, as far as that is known."""

    def list_confidences(self, logits: Floats, targets: Targets) -> tuple[Floats, NDArray[np.bool_]]:
        """Return confidences and whether each was right, both (M,), for the reliability plot."""
        scores = self.activate(logits)
        decisions = self.decide(scores, None)
        return scores[np.arange(len(scores)), decisions], decisions == targets

    @abstractmethod
    def rank_errors(
        self, scores: NDArray[np.float64], targets: Targets, scaling: Scaling | None
    ) -> tuple[list[int], list[int]]:
        """Return wrong predictions, the most confident first, and all predictions, the least confident first."""

    @abstractmethod
    def summarise(self, scores: NDArray[np.float64], classes: Sequence[str], scaling: Scaling | None) -> Outcome:
        """Return the prediction for one image, from its scores (K,)."""

    @abstractmethod
    def list_differences(
        self, outcome: Outcome, target: Any, classes: Sequence[str], scaling: Scaling | None
    ) -> list[str]:
        """Return the prediction for one image beside its target, such as `predicted VIRUS (92%), labelled BACTERIA`.

        Several labels have a line for each wrong one, the most confident error first, and one that counts the others.
        """

    # Groups

    @abstractmethod
    def pool(self, logits: Floats, units: Ints, rule: Rule, negative: int | None = None) -> NDArray[np.float64]:
        """Return the logits of groups, (G, K), from the calibrated logits of their images.

        `units` has the number of each image's group, (N,), 0 to G-1. `negative` as in `pool_targets`.
        """

    @abstractmethod
    def pool_targets(self, targets: Targets, units: Ints, negative: int | None) -> Targets:
        """Return the targets of G groups from those of their N images.

        `units` as in `pool`. Any other class of a group's images outweighs the class `negative`; None for none.
        """

    @abstractmethod
    def describe_pooled_target(self, negative: str | None) -> str:
        """Return in words the target of a group whose images have different ones."""

    @abstractmethod
    def measure_losses(self, logits: Floats, targets: Targets) -> NDArray[np.float64]:
        """Return the loss of each image or group, (N,), from calibrated logits (N, K)."""

    def fit_pooled(self, logits: Floats, targets: Targets, weights: Floats) -> Scaling:
        """Fit a calibration of pooled logits on validation groups.

        The logits are pooled, (G, K); `weights` say how much each group counts, (G,).
        """
        return self.fit_calibration(logits, targets, None)

    # Metrics

    @abstractmethod
    def make_calculator(self, logits: Floats, targets: Targets, scaling: Scaling | None = None) -> Calculator:
        """Return the calculator of this task's metrics.

        The logits are calibrated, (N, K); `scaling` gives decision thresholds and prediction intervals.
        """

    def compute_metrics(
        self, logits: Floats, targets: Targets, classes: Sequence[str], scaling: Scaling | None = None
    ) -> MetricSet:
        """Return the metrics of N images; arguments as `make_calculator`.

        Raises:
            ValueError: N is 0.
        """
        if not len(targets):
            raise ValueError("no images to evaluate")
        return self.summarise_metrics(self.make_calculator(logits, targets, scaling), classes)

    @abstractmethod
    def summarise_metrics(self, calculator: Any, classes: Sequence[str]) -> MetricSet:
        """Return the metrics of a calculator of `make_calculator`, all images counted once."""

    @abstractmethod
    def describe_results(self, metrics: MetricSet, scores: Floats, targets: Targets) -> list[str]:
        """Return sentences on what is predicted well, and what is confused with what.

        The scores are those of `activate`, (N, K).
        """

    @abstractmethod
    def measure_chance(self, metrics: MetricSet, targets: Targets) -> Chance:
        """Return the headline metric of a constant prediction; arguments as `describe_results`."""

    def list_warnings(
        self, training: Targets, scores: Floats, classes: Sequence[str], scaling: Scaling | None
    ) -> list[str]:
        """Return warnings on predictions that contradict the training targets.

        `training` has the targets of the training images, and `scores`, (N, K), those of the evaluated images.
        """
        return []

    def score_epoch(self, entry: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the score by which the best epoch is chosen, from validation metrics by key. Higher is better."""
        keys = (self.display.headline, self.display.loss)
        signed = ((entry[key], 1 if METRICS[key].higher_is_better else -1) for key in keys)
        return tuple(-np.inf if value is None else sign * value for value, sign in signed)

    # Text

    @abstractmethod
    def to_row(self, outcome: Outcome, top_k: int) -> dict[str, Any]:
        """Return an outcome as a JSON object."""

    @abstractmethod
    def list_cells(self, outcome: Outcome) -> list[Any]:
        """Return the cells of `columns`."""

    @abstractmethod
    def list_parts(self, outcome: Outcome, top_k: int, pad: "Pad") -> list[str]:
        """Return the parts of an outcome's line in the terminal."""


Pad: TypeAlias = Callable[[str], str]
"""Pads the name of a class with spaces, so that what follows is aligned."""
