"""The settings of a training. Each is declared once, here: command-line options and the plan file are made from it."""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypedDict

from convnext_cli.data.index import NONE
from convnext_cli.errors import UsageError
from convnext_cli.images.preprocessing import MAX_SIDE, MIN_SIDE, ImageSize, parse_size, split_size
from convnext_cli.options import (
    AUGMENTATION,
    AUTO,
    TRAINING,
    AugmentationOption,
    DataOption,
    Declaration,
    ModelOption,
    Option,
    TrainingOption,
    check_options,
    convert_value,
    describe_options,
)
from convnext_cli.tasks.reading import TaskName
from convnext_cli.text import format_count

RECIPES = ("measured", "specification", "published")  # the sources of default values
DEFAULT_RECIPE = "measured"
RECIPE_HELP = "Source of default values: measured, specification, or published (the authors')."
WEIGHTS_HELP = "auto (Hub), builtin, none, a path, or timm/NAME."
TABLE_SETTINGS = (
    "task", "label_from", "label_columns", "label_column", "label_sep", "path_column", "group_column", "split_column",
    "blank", "log_target", "grades",
)  # fmt: skip
READING_SETTINGS = ("image_root", "exclude", "group_from", "resplit", "resplit_val", *TABLE_SETTINGS)
"""The settings that say how data are read."""
TEACHER_SETTINGS = ("teacher_weight", "teacher_temperature", "teacher_features", "teacher_views")
MAX_COUNT = 1_000_000  # epochs, images of a batch, steps: a larger value is a typing error
MAX_LR = 1e6  # far above any that trains; larger values overflow
UNKNOWN = "unknown"
_PRESET = "augmentation "  # before the name of a preset, in a source
WEIGHTS: Final = "weights"  # the fit of the pretrained weights, and training crops from the whole image, as in timm
DEFAULT_FIT = AUTO  # of the default recipe: benchmarks/recipes/README.md compares the fits
BEFORE_FIT: dict[str, str] = {"fit": WEIGHTS, "crop_pct": AUTO}  # of plans and runs older than these settings
MIN_CROP_PCT = 0.1
IMBALANCE: dict[str, dict[str, Any]] = {
    "none": {},
    "sampler": {"sampler": "balanced"},
    "weights": {"class_weights": "balanced"},
    "effective": {"class_weights": "effective"},
    "asymmetric": {"class_weights": "asymmetric"},
    "logit": {"logit_adjustment": 1.0},
}
UNCORRECTED: dict[str, Any] = {"sampler": "shuffle", "class_weights": "none", "logit_adjustment": 0.0}
HEAD_SETTINGS = (  # of those of training, what the head alone is trained with
    "epochs", "freeze_epochs", "weight_decay", "label_smoothing", "uncertain", "amp", "seed", *UNCORRECTED,
)  # fmt: skip


def parse_fold(text: str) -> int | str:
    """Return a fold's number, or the text where it is `K/N` (fold K of N).

    Raises:
        ValueError: it is neither.
    """
    parts = text.split("/")
    if len(parts) > 2 or not all(part.strip().lstrip("+-").isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not a fold; write K/N, such as 2/5")
    return text if len(parts) == 2 else int(text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The resolved settings of one training. Those without a default here get it from a recipe."""

    epochs: Annotated[
        int,
        TrainingOption("Epochs of fine-tuning; 0 leaves --freeze-epochs only.", is_common=True, low=0, high=MAX_COUNT),
    ]
    freeze_epochs: Annotated[
        int, TrainingOption("Epochs that train the head only, first; 0 is off.", is_common=True, low=0, high=MAX_COUNT)
    ]
    batch_size: Annotated[
        int,
        TrainingOption(
            "Images per optimizer step, over all processes.", is_common=True, low=1, high=MAX_COUNT, flags=("-b",)
        ),
    ]
    micro_batch_size: Annotated[
        int,
        TrainingOption(
            "Images per forward pass and process; gradients accumulate up to the batch size.", low=1, high=MAX_COUNT
        ),
    ]
    lr: Annotated[
        float,
        TrainingOption(
            "Peak learning rate; auto runs a short range test.",
            is_common=True,
            low=0,
            high=MAX_LR,
            is_open=True,
            words=(AUTO,),
        ),
    ]
    min_lr: Annotated[float, TrainingOption("Learning rate at the end of the cosine schedule.", low=0, high=10)] = 1e-6
    warmup_epochs: Annotated[
        float, TrainingOption("Epochs of linear warm-up to the peak learning rate.", low=0, high=MAX_COUNT)
    ]
    weight_decay: Annotated[
        float, TrainingOption("AdamW weight decay; not applied to norms, biases, LayerScale and GRN.", low=0, high=100)
    ]
    layer_decay: Annotated[
        float, TrainingOption("Learning-rate factor from each block to the one before it; 1 is off.", low=0, high=1)
    ]
    drop_path: Annotated[
        float, TrainingOption("Stochastic depth rate of the last block, rising linearly from 0.", low=0, high=0.99)
    ]
    head: Annotated[
        Literal["linear", "mlp"],
        ModelOption("Classifier: linear, the model's own; or mlp, with a hidden layer and GELU."),
    ] = "linear"
    head_hidden_size: Annotated[
        int,
        ModelOption("Width of the hidden layer of --head mlp.", low=1, high=8192),
    ] = 512  # fastai's create_head
    head_dropout: Annotated[float, ModelOption("Dropout before the classifier; 0 is off.", low=0, high=0.99)] = 0.0
    label_smoothing: Annotated[
        float, TrainingOption("Label smoothing; 0 is off.", low=0, high=0.99, flags=("--smoothing",))
    ]
    mixup: Annotated[float, AugmentationOption("Mixup alpha; 0 is off.", low=0, high=100)]
    cutmix: Annotated[float, AugmentationOption("CutMix alpha; 0 is off.", low=0, high=100)]
    mixup_off_epoch: Annotated[
        int,
        AugmentationOption(
            "Epoch from which mixup and CutMix are off, counted from 0; 0 keeps them on.", low=0, high=MAX_COUNT
        ),
    ] = 0
    class_weights: Annotated[
        Literal["none", "balanced", "effective", "asymmetric"],
        AugmentationOption(
            "Class weights in the loss: none, inverse frequency (balanced), effective number, or asymmetric loss."
        ),
    ] = "none"
    sampler: Annotated[
        Literal["shuffle", "balanced"],
        AugmentationOption("Sampling: each image once an epoch (shuffle), or each class equally often (balanced)."),
    ] = "shuffle"
    logit_adjustment: Annotated[
        float,
        AugmentationOption(
            "Factor on the log class priors added to the logits in training; 1 is usual, 0 is off.", low=0, high=100
        ),
    ] = 0.0
    head_init_scale: Annotated[
        float,
        ModelOption(
            "Factor on the newly initialised classifier's weights; 0.001 starts it near zero.", low=0, high=1000
        ),
    ] = 1.0
    ema_decay: Annotated[
        float,
        TrainingOption(
            "Decay of an exponential moving average of the weights, which is then validated and kept; 0 is off.",
            low=0,
            high=0.99999,
        ),
    ] = 0.0
    image_size: Annotated[
        ImageSize,
        ModelOption(
            "Side of a square, or HEIGHTxWIDTH such as 224x320.",
            unit="px",
            is_common=True,
            low=MIN_SIDE,
            high=MAX_SIDE,
            flags=("--img-size",),
            parse=parse_size,
            metavar="SIZE",
        ),
    ]
    fit: Annotated[
        Literal["auto", "crop", "pad", "squash", "weights"],
        ModelOption("Fit images: crop, pad, squash, weights (as timm), auto.", is_common=True, metavar="FIT"),
    ]
    crop_pct: Annotated[
        float,
        ModelOption(
            "Fraction of the scaled image's sides kept in evaluation; auto: the weights' for --fit crop, else 1.",
            low=MIN_CROP_PCT,
            high=1,
            words=(AUTO,),
        ),
    ]
    in_chans: Annotated[Literal[1, 3], ModelOption("Input channels of the model; 1 uses the luminance only.")] = 3
    min_crop_area: Annotated[
        float,
        AugmentationOption(
            "Smallest fraction of the image area in a random training crop; 1 uses the evaluation crop.", low=0, high=1
        ),
    ]
    hflip: Annotated[
        float, AugmentationOption("Probability of a horizontal flip; 0 where left and right differ.", low=0, high=1)
    ]
    rotation: Annotated[
        float,
        AugmentationOption("Largest random rotation in either direction; 0 is off.", unit="degrees", low=0, high=180),
    ] = 0.0
    jitter: Annotated[
        float, AugmentationOption("Largest relative change of brightness and contrast; 0 is off.", low=0, high=0.99)
    ] = 0.0
    rand_augment: Annotated[
        float, AugmentationOption("RandAugment magnitude, on timm's scale; 0 is off.", low=0, high=10)
    ] = 0.0
    erasing: Annotated[float, AugmentationOption("Probability of random erasing; 0 is off.", low=0, high=1)] = 0.0
    teacher_weight: Annotated[
        float,
        TrainingOption("Weight of the teacher's probabilities in the loss; the labels have 1 minus it.", low=0, high=1),
    ] = 0.7
    teacher_temperature: Annotated[
        float,
        TrainingOption(
            "Temperature of the teacher's and the student's probabilities in the loss.", low=0, high=100, is_open=True
        ),
    ] = 2.0
    teacher_features: Annotated[
        float,
        TrainingOption(
            "Weight in the loss of 1 - cosine of the student's and the teacher's features; 0 is off.", low=0, high=100
        ),
    ] = 1.0
    teacher_views: Annotated[
        int,
        TrainingOption(
            "Random views of each image that the teacher sees, once; epochs use them in turn.", low=1, high=10_000
        ),
    ] = 8
    average_best: Annotated[
        int,
        TrainingOption(
            "Average the weights of this many best epochs at the end; kept if no worse; 0 is off.", low=0, high=1000
        ),
    ] = 0
    clip_grad: Annotated[
        float,
        TrainingOption("Largest gradient norm (L2) of a step; 0 is off.", low=0, high=1e6),
    ] = 0.0
    patience: Annotated[
        int, TrainingOption("Stop after N epochs without improvement; 0 is off.", is_common=True, low=0, high=MAX_COUNT)
    ] = 0
    save_every: Annotated[
        int, Option("Optimizer steps between two checkpoints; 0 saves after each epoch only.", low=0, high=MAX_COUNT)
    ] = 0
    grad_checkpointing: Annotated[
        bool,
        TrainingOption(
            "Recompute activations in the backward pass: less memory, about a third slower.", has_negation=True
        ),
    ] = False
    deterministic: Annotated[
        bool, Option("Use deterministic algorithms only; fail where none exists.", has_negation=True)
    ] = False
    task: Annotated[
        TaskName,
        DataOption(
            "Targets: auto, single (one class), multilabel, ordinal (grades) or regression.",
            is_common=True,
            metavar="TASK",
        ),
    ] = "auto"
    label_from: Annotated[
        str, DataOption(r"Class: auto (folders or a table), or a regular expression on the path, such as '(\w+)_\d+'.")
    ] = AUTO
    label_columns: Annotated[
        str,
        DataOption("Columns of a table with a label each (1, 0, -1 or blank): A,B,C."),
    ] = AUTO
    label_column: Annotated[
        str, DataOption("Column of a table with the class, the labels, the grade or the number.")
    ] = AUTO
    label_sep: Annotated[str, DataOption("Separator of several labels in one cell of a table, such as '|'.")] = AUTO
    path_column: Annotated[str, DataOption("Column of a table with the images' paths.")] = AUTO
    group_column: Annotated[str, DataOption("Column of a table with the groups (patients), or none.")] = AUTO
    split_column: Annotated[str, DataOption("Column of a table with the splits, or none.")] = AUTO
    blank: Annotated[
        Literal["unknown", "negative"], DataOption("Meaning of a blank cell in the columns of labels.")
    ] = "unknown"
    log_target: Annotated[
        Literal["auto", "yes", "no"],
        DataOption("Learn the logarithm of the target; auto: if targets are skewed and span a factor of 20."),
    ] = "auto"
    grades: Annotated[str, DataOption("Grades of --task ordinal in their order, the lowest first: A,B,C.")] = AUTO
    uncertain: Annotated[
        Literal["ignore", "positive", "negative", "smooth"],
        TrainingOption("Training target of an uncertain label (-1): none, 1, 0, or 0.7 (arXiv:1911.06475)."),
    ] = "ignore"
    image_root: Annotated[
        str,
        DataOption("Folder that a table's paths are relative to; auto searches the file's folder and those below."),
    ] = AUTO
    exclude: Annotated[str, DataOption("Leave out images: a list, a folder or a pattern.", is_common=True)] = NONE
    group_from: Annotated[
        str,
        DataOption(
            "Groups (patients): auto, none, dicom:PatientID, or a regular expression on the path.", is_common=True
        ),
    ] = AUTO
    resplit: Annotated[
        bool, DataOption("Ignore the data's own splits and draw new ones.", is_common=True, has_negation=True)
    ] = False
    resplit_val: Annotated[
        bool, DataOption("Draw a new val split from train and val; the test split stays.", has_negation=True)
    ] = False
    unlabelled: Annotated[
        bool,
        DataOption(
            "Take all images below the folder as unlabelled; the teacher's predictions are their labels.",
            has_negation=True,
        ),
    ] = False
    data_license: Annotated[
        str, DataOption("Licence of the images, such as cc-by-nc-4.0; it is joined to the model's licence.")
    ] = UNKNOWN
    folds: Annotated[int, DataOption("Cross-validation folds; 0 is off.", is_common=True, low=0, high=1000)] = 0
    fold: Annotated[
        int,
        DataOption("Train fold K of N only; 0 trains all in turn.", low=0, high=1000, parse=parse_fold, metavar="K/N"),
    ] = 0
    leave_out: Annotated[
        str, DataOption("Column, such as site: for each value, train on the others and test on it.", metavar="COLUMN")
    ] = NONE
    val_fraction: Annotated[
        float, DataOption("Fraction of images for validation, if the data have no val split.", low=0, high=0.9)
    ] = 0.15
    test_fraction: Annotated[
        float, DataOption("Fraction of images for the test split, if the data have no splits.", low=0, high=0.9)
    ] = 0.15
    amp: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        TrainingOption("Mixed precision; auto is bf16, fp16 on older GPUs, float32 on a CPU."),
    ] = "auto"
    seed: Annotated[
        int, TrainingOption("Seed of split, weights, order and augmentation.", is_common=True, low=0, high=2**32 - 1)
    ] = 0

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the model's input in pixels."""
        return split_size(self.image_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingSources:
    """Options that set several settings at once. Settings given by name override them."""

    config: Annotated[
        Path | None, ModelOption("Plan file to start from; other options override it.", is_common=True, flags=("-c",))
    ] = None
    imbalance: Annotated[
        Literal["none", "sampler", "weights", "effective", "logit", "asymmetric"] | None,
        AugmentationOption("none, sampler, weights, effective, logit or asymmetric.", metavar="METHOD", is_common=True),
    ] = None


class DataOptions(TypedDict, total=False):
    """The settings that say how data are read, as keyword arguments."""

    image_root: Path | str
    exclude: Path | str
    group_from: str
    resplit: bool
    resplit_val: bool
    task: TaskName
    label_columns: str
    label_column: str
    label_from: str
    label_sep: str
    path_column: str
    group_column: str
    split_column: str
    blank: Literal["unknown", "negative"]
    log_target: Literal["auto", "yes", "no"]
    grades: str


class SettingsDict(DataOptions, total=False):
    """The settings as keyword arguments, for type checkers and editors. A test compares them with `Settings`."""

    epochs: int
    freeze_epochs: int
    batch_size: int
    micro_batch_size: int
    lr: float | Literal["auto"]
    min_lr: float
    warmup_epochs: float
    weight_decay: float
    layer_decay: float
    drop_path: float
    head: Literal["linear", "mlp"]
    head_hidden_size: int
    head_dropout: float
    label_smoothing: float
    mixup: float
    cutmix: float
    mixup_off_epoch: int
    class_weights: Literal["none", "balanced", "effective", "asymmetric"]
    sampler: Literal["shuffle", "balanced"]
    logit_adjustment: float
    head_init_scale: float
    ema_decay: float
    image_size: int | str
    fit: Literal["auto", "crop", "pad", "squash", "weights"]
    crop_pct: float | Literal["auto"]
    in_chans: Literal[1, 3]
    min_crop_area: float
    hflip: float
    rotation: float
    jitter: float
    rand_augment: float
    erasing: float
    teacher_weight: float
    teacher_temperature: float
    teacher_features: float
    teacher_views: int
    average_best: int
    clip_grad: float
    patience: int
    save_every: int
    grad_checkpointing: bool
    deterministic: bool
    uncertain: Literal["ignore", "positive", "negative", "smooth"]
    unlabelled: bool
    data_license: str
    folds: int
    fold: int
    leave_out: str
    val_fraction: float
    test_fraction: float
    amp: Literal["auto", "no", "bf16", "fp16"]
    seed: int


def declare_settings() -> dict[str, Declaration]:
    """Return the declaration of each setting, by name."""
    return describe_options(Settings)


def default_settings() -> dict[str, Any]:
    """Return the settings that have a default of their own."""
    return {field.name: field.default for field in fields(Settings) if field.default is not MISSING}


def check_settings(values: Mapping[str, Any]) -> None:
    """Check names, types and bounds of settings.

    Raises:
        UsageError: one or more are wrong; all of them are named.
    """
    check_options(values, declare_settings(), kind="setting")


def expand_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in their types, with `imbalance`, a fold `K/N` and a size (H, W) replaced by what they stand for.

    Raises:
        UsageError: one of them is set in both ways, or a fold is not one.
    """
    declared = declare_settings()
    settings = {
        name: convert_value(declared[name], value) if name in declared else value
        for name, value in values.items()
        if name != "imbalance"
    }
    imbalance = values.get("imbalance")
    if imbalance is not None:
        if both := [name for name in UNCORRECTED if name in settings]:
            raise UsageError(
                f"imbalance and {', '.join(both)} both set the correction of class imbalance", "Use imbalance only"
            )
        if imbalance not in IMBALANCE:
            raise UsageError(f"imbalance = {imbalance!r} must be one of {', '.join(IMBALANCE)}", "Choose one of them")
        settings |= UNCORRECTED | IMBALANCE[imbalance]
    if "image_size" in settings:
        settings["image_size"] = _read_size(settings["image_size"])
    if isinstance(fold := settings.get("fold"), str):
        settings |= _read_fold(fold, settings.get("folds"))
    return settings


def _read_fold(text: str, folds: Any) -> dict[str, Any]:
    try:
        fold = parse_fold(text)
    except ValueError as error:
        raise UsageError(str(error), "Count folds from 1") from error
    if isinstance(fold, int):
        return {"fold": fold}
    number, count = map(int, fold.split("/"))
    if folds not in (None, count):
        raise UsageError(f"--fold {text} and --folds {folds} differ", "Leave out --folds")
    if not 1 <= number <= count:
        raise UsageError(f"--fold {text} is no fold", f"Give --fold from 1/{count} to {count}/{count}")
    return {"fold": number, "folds": count}


def _read_size(value: Any) -> Any:
    """Return a size as settings have it, from text or (H, W); other values as they are, to be refused with the rest."""
    text = "x".join(map(str, value)) if isinstance(value, tuple | list) else value
    try:
        return parse_size(text) if isinstance(text, str) else value
    except ValueError:
        return text


def has_folds(values: Mapping[str, Any]) -> bool:
    """Return True if settings are for a cross-validation of all folds."""
    return bool(values["folds"] or values["leave_out"] != NONE) and not values["fold"]


def check_combinations(values: Mapping[str, Any]) -> None:
    """Check settings that depend on one another, each of which is valid alone.

    Raises:
        UsageError: two of them contradict each other.
    """
    if values["val_fraction"] + values["test_fraction"] >= 1:
        raise UsageError("--val-fraction and --test-fraction leave no training images", "Make their sum less than 1")
    if values["leave_out"] == NONE and values["folds"] == 1:
        raise UsageError("one fold leaves no images to train on", "Give --folds 2 or more")
    if values["leave_out"] == NONE and values["fold"] > values["folds"]:
        folds = format_count(values["folds"], "fold")
        raise UsageError(f"fold {values['fold']} of {folds}", "Give --folds of at least --fold")
    if len(both := [name for name, off in UNCORRECTED.items() if values[name] != off]) > 1:
        raise UsageError(f"{' and '.join(both)} both correct class imbalance", "Use one of them")


def list_changed(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the settings that differ from their defaults; of those that have none, from 0."""
    defaults = default_settings()
    return tuple(name for name, value in values.items() if value != defaults.get(name, 0))


def check_teacher(chosen: Collection[str], *, has_teacher: bool, unlabelled: bool) -> None:
    """Check that the settings of distillation that a user chose have an effect.

    Args:
        chosen: their names; not those of a plan file, which holds every setting.
        has_teacher: True if a teacher is distilled.
        unlabelled: True if its predictions are the only labels.

    Raises:
        UsageError: one has none.
    """
    if not has_teacher and (names := [name for name in TEACHER_SETTINGS if name in chosen]):
        flag = declare_settings()[names[0]].flag
        raise UsageError(f"{flag} has no effect without a teacher", "Add --teacher, or leave it out")
    if unlabelled and "teacher_weight" in chosen:
        raise UsageError(
            "--teacher-weight has no effect with --unlabelled: the teacher's probabilities are the only targets",
            "Leave it out",
        )


def check_schedule(chosen: Collection[str], settings: Settings) -> None:
    """Check that the settings of a schedule that a user chose, as in `check_teacher`, have an effect beside all others.

    Raises:
        UsageError: one has none, or the learning rate does not reach its peak.
    """
    if settings.epochs and "warmup_epochs" in chosen and settings.warmup_epochs > settings.epochs:
        raise UsageError(
            f"--warmup-epochs {settings.warmup_epochs:g} is more than the {format_count(settings.epochs, 'epoch')}: "
            "the learning rate would never reach its peak",
            "Give fewer --warmup-epochs, or more --epochs",
        )
    if "mixup_off_epoch" in chosen and not settings.mixup and not settings.cutmix:
        raise UsageError("--mixup-off-epoch has no effect: mixup and CutMix are off", "Leave it out, or add --mixup")


def list_unused_flags(chosen: Collection[str], settings: Settings) -> list[str]:
    """Return the flags of the settings of training that a user chose, and that 0 epochs leave without effect."""
    declared = declare_settings()
    return [
        declared[name].flag
        for name in chosen
        if not settings.epochs and declared[name].option.group in (TRAINING, AUGMENTATION) and name not in HEAD_SETTINGS
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The value of a setting, with its source and reason."""

    value: Any
    source: str
    """The origin of the value.

    `flag` or `auto` (an option), `plan`, `rule`, `default`; `measured`, `published ...`, `specification ...` or
    `augmentation ...` (a recipe's table); `range test`, `max-time` or `table` (chosen when the training begins; `table`
    after an inconclusive range test); `the demo`.
    """
    reason: str = ""

    @classmethod
    def of_preset(cls, name: str, value: Any, reason: str) -> "Choice":
        """Return the choice of an augmentation preset."""
        return cls(value=value, source=f"{_PRESET}{name}", reason=reason)

    @property
    def is_chosen(self) -> bool:
        """True if the user chose it, by an option or in a plan file."""
        return self.source in ("flag", "plan")

    @property
    def preset(self) -> str:
        """The augmentation preset that it is from; empty for other sources."""
        return self.source.removeprefix(_PRESET) if self.source.startswith(_PRESET) else ""
