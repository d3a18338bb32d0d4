"""`convnext predict`: what is this."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.completion import complete_run
from convnext_cli.cli.tables import count_cells
from convnext_cli.errors import ImageError, UsageError
from convnext_cli.text import make_visible, quote

if TYPE_CHECKING:
    from convnext_cli.data.inputs import Inputs
    from convnext_cli.inference.prediction import Prediction

MAX_PATH = 60  # characters of a path before the table's columns give way


def predict(
    images: Annotated[list[str], typer.Argument(help="Images, folders, patterns such as 'a/*.png'; - reads a list.")],
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            "-r",
            help="Run folder or exported ONNX file; the newest under runs/ if not given.",
            autocompletion=complete_run,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many classes to show.", min=1)] = 3,
    raw: Annotated[bool, typer.Option("--raw", help="Leave out the run's temperature and thresholds.")] = False,
    abstain: Annotated[bool, typer.Option("--abstain", help="Flag images unlike the training images.")] = False,
    explain: Annotated[
        Path | None, typer.Option("--explain", help="Folder to draw into where the model looked.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures at --explain.")] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Average over shifted views; several times slower.")] = False,
    engine: Annotated[
        str, typer.Option(help="auto, onnx (ONNX Runtime) or torch; auto is onnx where the run has model.onnx.")
    ] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, an object per image; a last one counts skipped files.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, one line per image, safe to open in a spreadsheet.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="With --csv, names as they are: no escapes, no guard against formulas.")
    ] = False,
) -> None:
    """Classify images. The exit code is 3 where one of them cannot be read; the others are classified all the same."""
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other", "Give one of them")
    if exact and not as_csv:
        raise UsageError("--exact goes with --csv", "Add --csv, or leave out --exact")

    from convnext_cli.runs.folds import find_newest_run

    inputs = find_files(images)
    named = next((path for path in inputs.paths if str(path).endswith(".csv") and not Path(path).exists()), None)
    if as_csv and named:
        raise UsageError(
            f"--csv takes no file name: it prints to standard output, and {named} is not an image",
            f"Write `--csv > {quote(named)}`",
        )
    folder = find_newest_run().path if run is None else run
    if run is None:
        console.say(f"run: {folder} (the newest)")

    from convnext_cli.inference.agreement import list_calibration_notes
    from convnext_cli.inference.prediction import Prediction, list_run_notes, predict_steps
    from convnext_cli.inference.request import PredictRequest

    if folder.is_dir():
        for note in list_calibration_notes(folder):
            console.warn(note)
    request = PredictRequest(raw=raw, abstain=abstain, explain=explain, overwrite=overwrite, tta=tta, engine=engine)
    for note in list_run_notes(folder, request):
        console.warn(note)
    failures: list[ImageError] = []
    bad = [Prediction(path=path, error=error) for path, error in inputs.errors]
    total = len(inputs.paths) + len(bad)
    events = chain(bad, predict_steps(folder, inputs.paths, request))
    predictions = _follow(events, total, failures)
    if as_json:
        rows = (_as_json(prediction, top_k) for prediction in predictions)
        console.show_json_rows(chain(rows, [{"skipped": inputs.skipped}] if inputs.skipped else []))
    elif as_csv:
        _show_csv(predictions, exact=exact)
    else:
        _show_table(predictions, inputs.paths, top_k)
        summary = f"Classified {total - len(failures):,} of {total:,} images"
        console.say(summary if explain else f"{summary}. Next: --explain FOLDER draws where the model looked")
    if explain is not None:
        count = total - len(failures)
        console.say(f"Explanations: {count} picture{'s' if count != 1 else ''} in {console.shorten(explain)}")
    if inputs.skipped:
        console.warn(describe_skipped(inputs.skipped))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        examples = "; ".join(error.problem for error in failures[:5])
        raise ImageError(f"{len(failures)} of {total} images cannot be read: {examples}", "Replace these files")


def find_files(words: list[str]) -> "Inputs":
    """Find the image files that words on the command line mean; `-` reads a list of them from standard input.

    Raises:
        ImageError: there are none.
        DataError: standard input is no list.
    """
    from convnext_cli.data.inputs import find_inputs

    return find_inputs(word for given in words for word in (_read_stdin() if given == "-" else [given]))


def _read_stdin() -> Iterator[str]:
    from convnext_cli.data.inputs import read_list

    return read_list(sys.stdin.buffer)


def describe_skipped(skipped: dict[str, int]) -> str:
    """Describe what was left out of folders, by reason."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    return f"skipped: {reasons}"


def _follow(predictions: "Iterator[Prediction]", total: int, failures: list[ImageError]) -> "Iterator[Prediction]":
    """Passes predictions on while it counts them, and collects the failures."""
    with console.progress("predicting") as bar:
        for done, prediction in enumerate(predictions, start=1):
            bar.update(done, total)
            if prediction.error is not None:
                failures.append(prediction.error)
            yield prediction


def _as_json(prediction: "Prediction", top_k: int) -> dict[str, Any]:
    if prediction.error is not None:
        return {"path": str(prediction.path), "error": prediction.error.problem}
    ranked = list(zip(prediction.classes, prediction.probabilities, strict=True))
    row: dict[str, Any] = {
        "path": str(prediction.path),
        "class": ranked[0][0],
        "probability": ranked[0][1],
        "top": [{"class": name, "probability": probability} for name, probability in ranked[:top_k]],
        "probabilities": dict(ranked),
        "decisions": prediction.decisions,
    }
    if prediction.abstained is not None:
        row |= {"novelty": prediction.novelty, "abstained": prediction.abstained}
    if prediction.explanation is not None:
        row["explanation"] = str(prediction.explanation)
    return row


def _show_csv(predictions: "Iterator[Prediction]", *, exact: bool) -> None:
    """One row per image; the classes' columns stand in the order of their names, the same for every image."""

    def show_row(cells: list[Any]) -> None:
        console.show_csv_row(cells, exact=exact)

    names: list[str] = []
    targets: list[str] = []
    waiting: list[Prediction] = []  # failures that come before the first answer, which names the columns
    for prediction in predictions:
        if not names:
            waiting.append(prediction)
            if prediction.error is not None:
                continue
            names, targets = sorted(prediction.classes), list(prediction.decisions)
            show_row(_csv_columns(names, targets))
            for first in waiting:
                show_row(_csv_cells(first, names, targets))
        else:
            show_row(_csv_cells(prediction, names, targets))
    if not names:
        show_row(_csv_columns([], []))
        for first in waiting:
            show_row(_csv_cells(first, [], []))


def _csv_columns(names: list[str], targets: list[str]) -> list[str]:
    fixed = ("path", "class", "probability", "novelty", "abstained", "explanation", "error")
    return [*fixed, *(f"p({name})" for name in names), *targets]


def _csv_cells(prediction: "Prediction", names: list[str], targets: list[str]) -> list[Any]:
    known = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    best = (prediction.classes[0], prediction.probabilities[0]) if known else ("", "")
    error = prediction.error.problem if prediction.error else ""
    extra = (prediction.novelty, prediction.abstained, prediction.explanation)
    shares = (known.get(name, "") for name in names)
    decisions = (prediction.decisions.get(target, "") for target in targets)
    return [prediction.path, *best, *extra, error, *shares, *decisions]


def _show_table(predictions: "Iterator[Prediction]", paths: Sequence[Path], top_k: int) -> None:
    """A line per image as it comes, its columns aligned."""
    width = min(MAX_PATH, max(count_cells(make_visible(str(path))) for path in paths))
    for prediction in predictions:
        if prediction.error is None:
            console.show(_describe(prediction, width, top_k))


def _describe(prediction: "Prediction", width: int, top_k: int) -> str:
    ranked = zip(prediction.classes[:top_k], prediction.probabilities[:top_k], strict=True)
    longest = max(count_cells(make_visible(name)) for name in prediction.classes)
    parts = [f"{_pad(name, longest)} {100 * probability:5.1f}%" for name, probability in ranked]
    parts += [f"{target}: {'yes' if met else 'no'}" for target, met in prediction.decisions.items()]
    if prediction.abstained:
        parts.append("UNLIKE THE TRAINING IMAGES")
    return f"{_pad(str(prediction.path), width)}  " + "  ".join(parts).rstrip()


def _pad(text: str, cells: int) -> str:
    visible = make_visible(text)
    return visible + " " * (cells - count_cells(visible))
