"""`convnext predict`: classify images with a run."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from convnext_cli.cli import console
from convnext_cli.cli.options import OptionValues, with_options
from convnext_cli.cli.tables import count_cells
from convnext_cli.data.index import describe_frames, describe_skipped
from convnext_cli.errors import ImageError, UsageError
from convnext_cli.files import check_outside
from convnext_cli.inference.request import PREDICT_RUN, PredictRequest
from convnext_cli.options import DataOption, Option
from convnext_cli.text import (
    MAX_NAME,
    format_count,
    format_part,
    make_visible,
    quote,
    shorten_names,
    title_probabilities,
)

if TYPE_CHECKING:
    from convnext_cli.data.inputs import Inputs
    from convnext_cli.inference.prediction import Prediction
    from convnext_cli.tasks.task import Pad

MAX_PATH = 60  # characters of a path before the table's columns give way


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictFlags:
    """Options of the command alone."""

    images: Annotated[
        tuple[str, ...],
        DataOption(
            "Images, folders, or patterns such as 'a/*.png'; - reads a list from standard input.", is_argument=True
        ),
    ]
    run: Annotated[
        Path | None,
        Option(
            "Run folder or exported ONNX file; default: the newest under runs/.",
            is_common=True,
            flags=("-r",),
            completion="run",
        ),
    ] = None
    top_k: Annotated[int, Option("Number of classes to show.", is_common=True, flags=("-k",), low=1)] = 3
    as_json: Annotated[
        bool,
        Option(
            "Print JSON: an object per image or group; the last one has the number of skipped files.",
            is_common=True,
            name="json",
        ),
    ] = False
    as_csv: Annotated[
        bool, Option("Print CSV: a line per image or group, safe to open in a spreadsheet.", is_common=True, name="csv")
    ] = False
    exact: Annotated[
        bool, Option("With --csv, names as they are: no escapes, no guard against formulas.", is_common=True)
    ] = False


@with_options(PredictFlags, PredictRequest)
def predict(values: OptionValues) -> None:
    """Classify images. Exits with 3 if an image cannot be read; the others are classified."""
    flags, request = values.make(PredictFlags), values.make(PredictRequest)
    if flags.as_json and flags.as_csv:
        raise UsageError("--json and --csv exclude each other", "Give one of them")
    if flags.exact and not flags.as_csv:
        raise UsageError("--exact needs --csv", "Add --csv, or leave out --exact")
    inputs = find_files(flags.images)
    if request.explain is not None:
        for folder in inputs.folders:
            check_outside(request.explain, folder, "--explain")
    if flags.as_csv:
        _check_csv(inputs)
    run = find_run(flags.run, PREDICT_RUN)

    from convnext_cli.inference.prediction import Prediction, list_run_notes, predict_images
    from convnext_cli.inference.sources import list_sources

    for note in list_run_notes(run, request):
        console.note(note)
    unreadable = [Prediction(path=path, error=error) for path, error in inputs.errors]
    tally = _Tally()

    def follow() -> Iterator[Prediction]:
        with console.progress("predicting") as bar:
            for prediction in chain(unreadable, predict_images(run, list_sources(inputs.paths), request)):
                tally.add(prediction)
                bar.update(tally.images, len(inputs.paths) + len(unreadable))
                yield prediction

    _show_predictions(follow(), inputs, flags, per_group=request.per == "group")
    if request.abstain:
        scored = format_count(tally.scored, request.per)
        console.note(f"flagged as out-of-distribution (OOD): {tally.flagged:,} of {scored}")
    can_explain = request.per == "image" and run.is_dir()  # a file has no gradients
    if not (flags.as_json or flags.as_csv):
        summary = f"Predicted {tally.classified:,} of {format_count(tally.images, 'image')}"
        has_next = can_explain and tally.classified and request.explain is None
        console.say(f"{summary}. Next: --explain DIR draws heat maps" if has_next else summary)
    if request.explain is not None:
        console.say(f"Heat maps: {format_count(tally.classified, 'image')} in {console.shorten_path(request.explain)}")
    if ungrouped := len({str(path) for path in inputs.paths}.intersection(tally.groups)):  # named by their paths
        number = format_part(ungrouped, tally.images, "image", "has", "have")
        console.note(f"{number} no group by this rule: each is a group of its own")
    if tally.frames:
        examples = shorten_names([str(path) for path in tally.frames])
        console.note(f"{describe_frames(len(tally.frames))}: {examples}")
    if inputs.skipped:
        console.note(f"skipped: {describe_skipped(inputs.skipped)}")
    _raise_failures(tally.failures, tally.images)


class _Tally:
    """The images of the predictions so far, with failures, groups, files of several frames, and rows flagged as OOD."""

    def __init__(self) -> None:
        self.images = 0
        self.failures: list[ImageError] = []
        self.groups: list[str] = []
        self.frames: list[Path] = []
        self.scored = 0
        self.flagged = 0

    @property
    def classified(self) -> int:
        """The number of images that could be read."""
        return self.images - len(self.failures)

    def add(self, prediction: "Prediction") -> None:
        """Count a prediction."""
        self.images += prediction.inputs
        self.frames += prediction.frames
        self.scored += prediction.abstained is not None
        self.flagged += prediction.abstained is True
        if prediction.group is not None:
            self.failures += prediction.unreadable
            self.groups.append(prediction.group)
        elif prediction.error is not None:
            self.failures.append(prediction.error)


def _check_csv(inputs: "Inputs") -> None:
    """Check that no input is meant as the file to write CSV to."""
    named = next((path for path in inputs.paths if str(path).endswith(".csv") and not Path(path).exists()), None)
    if named:
        raise UsageError(
            f"--csv takes no file name: it prints to standard output, and {named} is not an image",
            f"Write `--csv > {quote(named)}`",
        )


def find_run(run: Path | None, naming: str) -> Path:
    """Return the run that the user names; else the newest one, which is named on the terminal.

    `naming` is the command that names a run, for the error where there is none.
    """
    from convnext_cli.runs.folds import find_newest_run

    if run is not None:
        return run
    newest = find_newest_run(naming).path
    console.say(f"run: {newest} (the newest)")
    return newest


def _show_predictions(
    predictions: "Iterator[Prediction]", inputs: "Inputs", flags: PredictFlags, *, per_group: bool
) -> None:
    if flags.as_json:
        rows = (_describe_prediction(prediction, flags.top_k) for prediction in predictions)
        console.show_json_rows(chain(rows, [{"skipped": inputs.skipped}] if inputs.skipped else []))
    elif flags.as_csv:
        _show_csv(predictions, exact=flags.exact, per_group=per_group)
    else:
        _show_table(predictions, inputs.paths, flags.top_k)


def _raise_failures(failures: Sequence[ImageError], total: int) -> None:
    """Raise an error that names the images that cannot be read, if there are any."""
    if len(failures) == 1:
        raise failures[0]
    if failures:
        examples = "; ".join(error.problem for error in failures[:5])
        raise ImageError(
            f"{format_part(len(failures), total, 'image', 'cannot', 'cannot')} be read: {examples}",
            "Replace these files",
        )


def find_files(words: Iterable[str]) -> "Inputs":
    """Return the image files that words of a command line name; `-` reads a list from standard input.

    Raises:
        ImageError: there are none.
        DataError: standard input is not a list.
    """
    from convnext_cli.data.inputs import find_inputs, read_list

    return find_inputs(entry for word in words for entry in (read_list(sys.stdin.buffer) if word == "-" else [word]))


def _describe_prediction(prediction: "Prediction", top_k: int) -> dict[str, Any]:
    row: dict[str, Any] = {"path": str(prediction.path)}
    if prediction.group is not None:
        row = {"group": prediction.group, "images": prediction.images}
    if prediction.error is not None:
        return row | {"error": prediction.error.problem}
    assert prediction.task is not None
    row |= prediction.task.to_row(prediction, top_k)
    row["decisions"] = prediction.decisions
    if prediction.missed_targets:
        row["missed_targets"] = prediction.missed_targets
    if prediction.abstained is not None:
        row |= {"novelty": prediction.novelty, "abstained": prediction.abstained}
    if prediction.explanation is not None:
        row["explanation"] = str(prediction.explanation)
    return row


def _show_csv(predictions: "Iterator[Prediction]", *, exact: bool, per_group: bool) -> None:
    """Print a row per image or group, with a column per class in the order of their names."""
    from convnext_cli.tasks.registry import SINGLE

    waiting: list[Prediction] = []  # failures, and the first prediction, which names the columns
    for prediction in predictions:
        waiting.append(prediction)
        if prediction.task is not None:
            break
    first = waiting[-1]
    task, names, targets = first.task or SINGLE, sorted(first.classes), list(first.decisions)
    unit = ["group", "images"] if per_group else ["path"]
    general = ["novelty", "abstained", "explanation", "error"]
    missed = ["targets missed on test"] * bool(first.missed_targets)
    titles = [*unit, *task.columns, *general, *title_probabilities(names), *targets, *missed]
    console.show_csv_row(titles, exact=exact)
    for prediction in chain(waiting, predictions):
        error, known = prediction.error, dict(zip(prediction.classes, prediction.probabilities, strict=True))
        cells = [
            prediction.group or prediction.path,
            *[prediction.images] * per_group,
            *([""] * len(task.columns) if error else task.list_cells(prediction)),
            prediction.novelty,
            prediction.abstained,
            prediction.explanation,
            error.problem if error else "",
            *(known.get(name, "") for name in names),
            *(prediction.decisions.get(target, "") for target in targets),
            *["; ".join(map(": ".join, prediction.missed_targets.items()))] * len(missed),
        ]
        console.show_csv_row(cells, exact=exact)


def _show_table(predictions: "Iterator[Prediction]", paths: Sequence[Path], top_k: int) -> None:
    """Print a line per image or group, with aligned columns."""
    width = _find_width(map(str, paths), MAX_PATH)
    pad: Pad | None = None
    for prediction in predictions:
        if prediction.error is None:
            pad = pad or partial(_pad, cells=_find_width(prediction.classes, MAX_NAME))  # of all classes, once
            console.show_parts(_list_parts(prediction, width, top_k, pad))


def _list_parts(prediction: "Prediction", width: int, top_k: int, pad: "Pad") -> list[str]:
    assert prediction.task is not None
    parts = prediction.task.list_parts(prediction, top_k, pad)
    for target, met in prediction.decisions.items():
        missed = prediction.missed_targets.get(target)
        parts.append(f"{target}: {'yes' if met else 'no'}{f' (missed on test: {missed})' if missed else ''}")
    if prediction.abstained:
        parts.append("out-of-distribution (OOD)")
    unit = str(prediction.path)
    if prediction.group is not None:
        unit = f"{prediction.group} ({format_count(prediction.images, 'image')})"
    return [_pad(unit, width), *parts]


def _find_width(names: Iterable[str], longest: int) -> int:
    """Return the width of the longest of some names, `longest` at most."""
    return min(longest, max((count_cells(make_visible(name)) for name in names), default=0))


def _pad(text: str, cells: int) -> str:
    visible = make_visible(text)
    return visible + " " * (cells - count_cells(visible))
