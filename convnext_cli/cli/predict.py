"""`convnext predict`: what is this."""

import csv
import glob
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.completion import complete_run
from convnext_cli.errors import ImageError, UsageError

if TYPE_CHECKING:
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
    tta: Annotated[bool, typer.Option("--tta", help="Average over shifted views; several times slower.")] = False,
    engine: Annotated[
        str, typer.Option(help="auto, onnx (ONNX Runtime) or torch; auto is onnx where the run has model.onnx.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per image.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one row per image.")] = False,
) -> None:
    """Classify images. The exit code is 3 where one of them cannot be read; the others are classified all the same."""
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other", "Give one of them")

    from convnext_cli.folds import find_newest_run

    paths = find_paths(images)
    folder = find_newest_run().path if run is None else run
    if run is None:
        console.say(f"run: {folder} (the newest)")

    from convnext_cli.inference.prediction import Wishes, predict_steps

    failures: list[ImageError] = []
    wishes = Wishes(raw=raw, abstain=abstain, explain=explain, tta=tta, engine=engine)
    predictions = _follow(predict_steps(folder, paths, wishes), len(paths), failures)
    if as_json:
        console.show_json_rows(_as_json(prediction, top_k) for prediction in predictions)
    elif as_csv:
        _show_csv(predictions)
    else:
        _show_table(predictions, paths, top_k)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        examples = "; ".join(error.problem for error in failures[:5])
        raise ImageError(f"{len(failures)} of {len(paths)} images cannot be read: {examples}", "Replace these files")


def find_paths(words: list[str]) -> list[Path]:
    """The image files that words on the command line mean: files, folders, patterns, `-` for a list.

    Raises:
        ImageError: there are none.
    """
    from convnext_cli.data.scan import find_images

    paths: list[Path] = []
    for word in _read_words(words):
        path = Path(word)
        if path.is_dir():
            found = find_images(path)
            if not found:
                raise ImageError(f"no images in {path}", "Give an image, or a folder that has some")
            paths += found
        elif not path.exists() and (matches := _match(word)):
            paths += matches
        else:
            paths.append(path)
    missing = [str(path) for path in paths if not path.exists()]
    if missing and len(missing) == len(paths):
        raise ImageError(f"{', '.join(missing[:5])} does not exist", "Give the path of an image")
    if not paths:
        raise ImageError("no images given", "Give images, folders or patterns, or a list of them on standard input")
    return paths


def _match(pattern: str) -> list[Path]:
    """The files that a pattern means, where the shell did not say so already; it may be absolute."""
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207  (Path.glob takes no absolute pattern)
    return sorted(path for path in map(Path, found) if path.is_file())


def _read_words(words: list[str]) -> Iterator[str]:
    """The words, with `-` replaced by the lines of standard input, whose bytes need not be text."""
    for word in words:
        if word != "-":
            yield word
            continue
        for line in sys.stdin.buffer:
            if name := line.rstrip(b"\r\n"):
                yield name.decode("utf-8", errors="surrogateescape")


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


def _show_csv(predictions: "Iterator[Prediction]") -> None:
    """One row per image; the classes' columns stand in the order of their names, the same for every image."""
    names: list[str] = []
    targets: list[str] = []
    waiting: list[Prediction] = []  # failures that come before the first answer, which names the columns
    for prediction in predictions:
        if not names:
            waiting.append(prediction)
            if prediction.error is not None:
                continue
            names, targets = sorted(prediction.classes), list(prediction.decisions)
            _show_csv_row(_csv_columns(names, targets))
            for first in waiting:
                _show_csv_row(_csv_cells(first, names, targets))
        else:
            _show_csv_row(_csv_cells(prediction, names, targets))
    if not names:
        _show_csv_row(_csv_columns([], []))
        for first in waiting:
            _show_csv_row(_csv_cells(first, [], []))


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


def _show_csv_row(cells: list[Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    console.show_raw(text.getvalue())


def _show_table(predictions: "Iterator[Prediction]", paths: list[Path], top_k: int) -> None:
    """A line per image as it comes, its columns aligned."""
    width = min(MAX_PATH, max(len(str(path)) for path in paths))
    for prediction in predictions:
        if prediction.error is None:
            console.show(_describe(prediction, width, top_k))


def _describe(prediction: "Prediction", width: int, top_k: int) -> str:
    ranked = zip(prediction.classes[:top_k], prediction.probabilities[:top_k], strict=True)
    longest = max(len(name) for name in prediction.classes)
    parts = [f"{name:<{longest}} {100 * probability:5.1f}%" for name, probability in ranked]
    parts += [f"{target}: {'yes' if met else 'no'}" for target, met in prediction.decisions.items()]
    if prediction.abstained:
        parts.append("UNLIKE THE TRAINING IMAGES")
    return f"{prediction.path!s:<{width}}  " + "  ".join(parts).rstrip()
