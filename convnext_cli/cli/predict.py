"""`convnext predict`: what is this."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.errors import ImageError

if TYPE_CHECKING:
    from convnext_cli.inference.predictor import Prediction


def predict(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    run: Annotated[
        Path | None, typer.Option("--run", "-r", help="Run folder; the newest under runs/ if not given.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many classes to show.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per image.")] = False,
) -> None:
    """Classify images. The exit code is 3 where one of them cannot be read; the others are classified all the same."""
    from convnext_cli.runs import find_newest_run

    paths = _find_paths(images)
    folder = find_newest_run().path if run is None else run
    if run is None:
        console.say(f"run: {folder} (the newest)")

    from convnext_cli.inference.predictor import Predictor

    failures: list[ImageError] = []
    predictions = _follow(Predictor(folder).predict(paths), len(paths), failures)
    if as_json:
        console.show_json_rows(_as_json(prediction, top_k) for prediction in predictions)
    else:
        for prediction in predictions:
            if prediction.error is None:
                console.show(_describe(prediction, top_k))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        examples = "; ".join(error.problem for error in failures[:5])
        raise ImageError(f"{len(failures)} of {len(paths)} images cannot be read: {examples}", "Replace these files")


def _find_paths(images: list[Path]) -> list[Path]:
    from convnext_cli.data.scan import find_images

    paths: list[Path] = []
    for path in images:
        if path.is_dir():
            found = find_images(path)
            if not found:
                raise ImageError(f"no images in {path}", "Give an image, or a folder that has some")
            paths += found
        else:
            paths.append(path)
    missing = [str(path) for path in paths if not path.exists()]
    if missing and len(missing) == len(paths):
        raise ImageError(f"{', '.join(missing[:5])} does not exist", "Give the path of an image")
    return paths


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
    return {
        "path": str(prediction.path),
        "class": ranked[0][0],
        "probability": ranked[0][1],
        "top": [{"class": name, "probability": probability} for name, probability in ranked[:top_k]],
    }


def _describe(prediction: "Prediction", top_k: int) -> str:
    ranked = zip(prediction.classes[:top_k], prediction.probabilities[:top_k], strict=True)
    return f"{prediction.path}  " + "  ".join(f"{name} {100 * probability:.1f}%" for name, probability in ranked)
