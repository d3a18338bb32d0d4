"""What can be set. Each setting is declared once, here: command-line options and the plan file are made from it."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

from convnext_cli.errors import UsageError, suggest

RECIPES = ("measured", "specification", "published")  # the tables that settings come from
DEFAULT_RECIPE = "measured"
MAX_COUNT = 1_000_000  # epochs, images of a batch, steps: what is above it is a slip of the hand
MAX_LR = 1e6  # far above any that trains; what lies beyond overflows
AUTO = "auto"
FLATTEN = (
    "a head without pooling fits one input size alone, and has a weight for each position, 49 times as many at 224 px"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a person needs to know of a setting, and what values it takes."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    open: bool = False
    """Whether the bounds themselves are excluded."""
    words: tuple[str, ...] = ()
    """What may stand in place of a number, for it to be found before training; never in a `Settings`."""
    refused: tuple[tuple[str, str], ...] = ()
    """Words that people try, each with the reason why there is no such choice."""
    flags: tuple[str, ...] = ()
    """Other names on the command line, beside the field's own in kebab case."""

    def problem(self, value: Any) -> str | None:
        """Says what is wrong with `value`, or returns None."""
        if isinstance(value, str):
            return None
        if self.low is not None and (value < self.low or (self.open and value == self.low)):
            return f"must be {'above' if self.open else 'at least'} {_show(self.low)}"
        if self.high is not None and (value > self.high or (self.open and value == self.high)):
            return f"must be {'below' if self.open else 'at most'} {_show(self.high)}"
        return None if value == value and abs(value) != float("inf") else "must be a finite number"


def _show(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of one fine-tuning, resolved. Those without a default here come from the tables."""

    epochs: Annotated[
        int, Setting(help="Passes over the training images; 0 trains the head alone.", low=0, high=MAX_COUNT)
    ]
    freeze_epochs: Annotated[
        int,
        Setting(
            help="Passes before these that train the head alone, on features computed once; 0 is off.",
            low=0,
            high=MAX_COUNT,
        ),
    ] = 0
    batch_size: Annotated[
        int,
        Setting(help="Images per optimizer step, over all processes.", low=1, high=MAX_COUNT, flags=("-b",)),
    ]
    micro_batch_size: Annotated[
        int,
        Setting(
            help="Images per forward pass of one process; gradients add up until the batch is full.",
            low=1,
            high=MAX_COUNT,
        ),
    ]
    lr: Annotated[
        float,
        Setting(
            help="Peak learning rate, for the whole batch; auto finds it by a range test of at most 60 steps.",
            low=0,
            high=MAX_LR,
            open=True,
            words=(AUTO,),
        ),
    ]
    min_lr: Annotated[float, Setting(help="Learning rate that the cosine ends at.", low=0, high=10)] = 1e-6
    warmup_epochs: Annotated[
        float, Setting(help="Epochs of linear rise to the peak learning rate.", low=0, high=MAX_COUNT)
    ]
    weight_decay: Annotated[
        float, Setting(help="AdamW's decay; never on norms, biases, LayerScale and GRN.", low=0, high=100)
    ]
    layer_decay: Annotated[
        float,
        Setting(help="Learning-rate factor from each block to the one before it; 1 is off.", low=0, high=1),
    ] = 1.0
    drop_path: Annotated[
        float,
        Setting(help="Stochastic depth of the last block, rising from 0 over all blocks.", low=0, high=0.99),
    ]
    head: Annotated[
        Literal["linear", "mlp"],
        Setting(
            help="Classifier: linear, the model's own; mlp, with a new hidden layer and GELU before it.",
            refused=(("flatten", FLATTEN),),
        ),
    ] = "linear"
    head_hidden_size: Annotated[
        int, Setting(help="Width of the hidden layer; it has effect with --head mlp alone.", low=1, high=8192)
    ] = 512  # as fastai's create_head has it
    head_dropout: Annotated[
        float,
        Setting(help="Share of the classifier's inputs left out in training; 0 is off.", low=0, high=0.99),
    ] = 0.0
    label_smoothing: Annotated[
        float,
        Setting(help="Share of the target spread over all classes.", low=0, high=0.99, flags=("--smoothing",)),
    ]
    mixup: Annotated[float, Setting(help="Mixup alpha; 0 is off.", low=0, high=100)]
    cutmix: Annotated[float, Setting(help="CutMix alpha; 0 is off.", low=0, high=100)]
    mixup_off_epoch: Annotated[
        int,
        Setting(
            help="Epoch from which mixup and CutMix are off, counted from 0; 0 leaves them on.", low=0, high=MAX_COUNT
        ),
    ] = 0
    class_weights: Annotated[
        Literal["none", "balanced", "effective"],
        Setting(help="Weigh rare classes' losses up: as if all were equally frequent, or by effective number."),
    ] = "none"
    sampler: Annotated[
        Literal["shuffle", "balanced"],
        Setting(help="Draw each image once an epoch, or each class equally often."),
    ] = "shuffle"
    logit_adjustment: Annotated[
        float,
        Setting(
            help="Add this times the log of a class's share to its logits in training; 1 is usual.", low=0, high=100
        ),
    ] = 0.0
    head_init_scale: Annotated[
        float,
        Setting(help="Factor on the new classifier's random weights; 0.001 starts it next to zero.", low=0, high=1000),
    ] = 1.0
    ema_decay: Annotated[
        float,
        Setting(
            help="Validate and keep a moving average of the weights, with this decay after a warm-up; 0 is off.",
            low=0,
            high=0.99999,
        ),
    ] = 0.0
    image_size: Annotated[
        int, Setting(help="Side of the square input.", unit="px", low=32, high=2048, flags=("--img-size",))
    ]
    in_chans: Annotated[
        Literal[1, 3],
        Setting(help="Channels of the model's input; with 1, it sees an image's luminance and no colour."),
    ] = 3
    min_crop_area: Annotated[
        float,
        Setting(
            help="Smallest share of an image's area that a random training crop keeps; 1 takes evaluation's view.",
            low=0,
            high=1,
        ),
    ]
    hflip: Annotated[
        float,
        Setting(help="Chance of a left-right flip in training; 0 where left and right differ.", low=0, high=1),
    ]
    rotation: Annotated[
        float,
        Setting(
            help="Training images are turned by at most this, either way; 0 is off", unit="degrees", low=0, high=180
        ),
    ] = 0.0
    jitter: Annotated[
        float,
        Setting(
            help="Brightness and contrast of training images vary by at most this share; 0 is off.", low=0, high=0.99
        ),
    ] = 0.0
    rand_augment: Annotated[
        float, Setting(help="Magnitude of RandAugment on training images, as timm counts it; 0 is off.", low=0, high=10)
    ] = 0.0
    erasing: Annotated[
        float, Setting(help="Chance that noise hides a rectangle of a training image; 0 is off.", low=0, high=1)
    ] = 0.0
    average_best: Annotated[
        int,
        Setting(
            help="Average the weights of this many best epochs at the end, and keep that if no worse.", low=0, high=1000
        ),
    ] = 0
    clip_grad: Annotated[
        float,
        Setting(
            help="Longest gradient (L2 norm) of a step; a longer one is shortened to it. 0 is off.", low=0, high=1e6
        ),
    ] = 0.0
    patience: Annotated[
        int, Setting(help="Epochs without a better one before training stops; 0 is off.", low=0, high=MAX_COUNT)
    ] = 0
    save_every: Annotated[
        int,
        Setting(help="Optimizer steps between two saved states; 0 saves after each epoch only.", low=0, high=MAX_COUNT),
    ] = 0
    grad_checkpointing: Annotated[
        bool, Setting(help="Compute activations twice instead of keeping them: less memory, about a third slower.")
    ] = False
    deterministic: Annotated[
        bool, Setting(help="Only algorithms that repeat to the bit, on a GPU too, or an error where there is none.")
    ] = False
    image_root: Annotated[
        str, Setting(help="Folder that a CSV file's paths begin in; auto looks in its own folder and those below.")
    ] = AUTO
    exclude: Annotated[
        str,
        Setting(
            help="Images to leave out: a file that lists paths, folders or patterns, as `check --fix-list` writes it; "
            "or one folder or pattern, such as masks or '*_mask.png'; or none."
        ),
    ] = "none"
    group_from: Annotated[
        str,
        Setting(
            help="What images of one patient have in common: auto (a manifest's column, or inferred from names), none, "
            "dicom:PatientID, or a regular expression on the path."
        ),
    ] = "auto"
    resplit: Annotated[bool, Setting(help="Forget the data's own splits and draw new ones.")] = False
    folds: Annotated[int, Setting(help="Folds to cut what is no test image into; 0 is off.", low=0, high=1000)] = 0
    fold: Annotated[
        int,
        Setting(help="The fold that validates, from 1; the others train. 0 is all of them, in turn.", low=0, high=1000),
    ] = 0
    val_fraction: Annotated[
        float,
        Setting(help="Share of the images for validation, where the data has no split.", low=0, high=0.9),
    ] = 0.15
    test_fraction: Annotated[
        float, Setting(help="Share of the images for testing, where the data has no split.", low=0, high=0.9)
    ] = 0.15
    amp: Annotated[
        Literal["auto", "no", "bf16"],
        Setting(help="Mixed precision; auto is bf16 where the GPU supports it, float32 elsewhere."),
    ] = "auto"
    seed: Annotated[
        int,
        Setting(help="Seed of the split, the weights, the order and the augmentation.", low=0, high=2**32 - 1),
    ] = 0


class SettingsDict(TypedDict, total=False):
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
    class_weights: Literal["none", "balanced", "effective"]
    sampler: Literal["shuffle", "balanced"]
    logit_adjustment: float
    head_init_scale: float
    ema_decay: float
    image_size: int
    in_chans: Literal[1, 3]
    min_crop_area: float
    hflip: float
    rotation: float
    jitter: float
    rand_augment: float
    erasing: float
    average_best: int
    clip_grad: float
    patience: int
    save_every: int
    grad_checkpointing: bool
    deterministic: bool
    image_root: str
    exclude: str
    group_from: str
    resplit: bool
    folds: int
    fold: int
    val_fraction: float
    test_fraction: float
    amp: Literal["auto", "no", "bf16"]
    seed: int


@cache
def describe_settings() -> dict[str, tuple[Any, Setting]]:
    """Each setting's type (int, float, bool or a Literal of words) and description, by name."""
    hints = get_type_hints(Settings, include_extras=True)
    return {field.name: get_args(hints[field.name]) for field in fields(Settings)}


def default_settings() -> dict[str, Any]:
    """The settings that have a default of their own."""
    return {field.name: field.default for field in fields(Settings) if field.default is not MISSING}


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can hold the text. A file name in another encoding has lone surrogates, which it cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def check_settings(values: Mapping[str, Any]) -> None:
    """Checks names, types and bounds of every setting given.

    Raises:
        UsageError: one or more are wrong; all of them are named.
    """
    known = describe_settings()
    problems = [f"{name} {problem}" for name, value in values.items() if (problem := _problem(known, name, value))]
    if problems:
        raise UsageError("; ".join(problems), "`convnext finetune --help` shows every setting with its unit")


def check_combinations(values: Mapping[str, Any]) -> None:
    """Checks what one setting makes of another, of values that are right by themselves.

    Raises:
        UsageError: two of them cannot be had together.
    """
    if values["val_fraction"] + values["test_fraction"] >= 1:
        raise UsageError("val_fraction and test_fraction leave nothing to train on", "Make their sum less than 1")
    if values.get("epochs") == 0 and not values["freeze_epochs"]:
        raise UsageError("0 epochs train nothing", "Give --epochs, or --freeze-epochs too to train the head alone")
    if values["fold"] > values["folds"]:
        raise UsageError(f"fold {values['fold']} of {values['folds']} folds", "Give --folds of at least --fold")
    corrections = {"class_weights": "none", "sampler": "shuffle", "logit_adjustment": 0}
    if len(on := [name for name, off in corrections.items() if values[name] != off]) > 1:
        raise UsageError(f"{' and '.join(on)} correct the same thing, and would do so twice", "Choose one of them")


def _problem(known: Mapping[str, tuple[Any, Setting]], name: str, value: Any) -> str | None:
    if name not in known:
        return f"is not a setting. {suggest(name, known)}".rstrip()
    kind, setting = known[name]
    if setting.words and value in setting.words:
        return None
    if get_origin(kind) is Literal:
        words = get_args(kind)
        known_word = (type(value), value) in [(type(word), word) for word in words]  # True is no 1
        because = dict(setting.refused).get(value) if isinstance(value, str) else None
        why = f": {because}" if because else ""
        return None if known_word else f"= {value!r} must be one of {', '.join(map(str, words))}{why}"
    if kind is str:
        fits = isinstance(value, str) and value and "\0" not in value and is_unicode(value)
        return None if fits else f"= {value!r} must be Unicode text"
    if kind is bool:
        return None if isinstance(value, bool) else f"= {value!r} must be true or false"
    accepted = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, accepted):
        return f"= {value!r} must be {'a number' if kind is float else 'a whole number'}"
    problem = setting.problem(value)
    return f"= {value!r} {problem}" if problem else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A setting's value, where it comes from, and why."""

    value: Any
    source: str
    """`flag`, `plan`, `rule`, `default`, or the table row's section."""
    reason: str = ""
