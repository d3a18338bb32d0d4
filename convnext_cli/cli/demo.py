"""`convnext demo`: every step on handwritten digits, offline, in about a minute."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from convnext_cli.cli import console
from convnext_cli.cli.eval import run_evaluations, write_report
from convnext_cli.cli.evaluation_view import show_evaluation
from convnext_cli.cli.options import OptionValues, with_options
from convnext_cli.cli.training_view import follow
from convnext_cli.errors import UsageError
from convnext_cli.inference.request import EvalRequest, PredictRequest
from convnext_cli.metrics.registry import METRICS
from convnext_cli.models.catalog import BUILTIN, load_builtin
from convnext_cli.options import Option
from convnext_cli.text import capitalise, format_percent, quote

if TYPE_CHECKING:
    from convnext_cli.runs.folder import RunFolder
    from convnext_cli.training.request import TrainRequest

FOLDER = Path("convnext-demo")
RUNS = {"from-scratch": "none", "run": BUILTIN}
"""The folder of each run, with its weights."""
SOURCE = "the demo"  # of its settings, by which its runs are recognised
SETTINGS = {
    "epochs": 2,
    "batch_size": 16,
    "lr": 2e-3,  # far above a usual fine-tuning rate: newly initialised weights learn with it too
    "warmup_epochs": 0.2,
    "image_size": 32,
    "min_crop_area": 0.7,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoFlags:
    """Options of the demo."""

    folder: Annotated[
        Path,
        Option("Folder for the demo's images and runs.", is_common=True, name="output", flags=("-o",), metavar="DIR"),
    ] = FOLDER
    as_json: Annotated[bool, Option("Print both evaluations as JSON.", is_common=True, name="json")] = False


@with_options(DemoFlags)
def demo(values: OptionValues) -> None:
    """Fine-tune, evaluate and predict handwritten digits, offline. It takes about a minute on two cores.

    The model is trained twice: from the pretrained weights in the package, and newly initialised.
    """
    from convnext_cli.data.digits import write_digits
    from convnext_cli.runs.folder import RunFolder

    flags = values.make(DemoFlags)
    folder = flags.folder
    _check_folder(folder)
    console.say(
        "Fine-tunes a small ConvNeXt on 1,797 handwritten digits twice: newly initialised, and from pretrained "
        "weights. Evaluates both on the test digits, and writes a report. Takes about a minute on two cores."
    )
    digits = write_digits(folder / "digits")
    evaluations = {}
    for name, weights in RUNS.items():
        follow(_make_request(digits, folder / name, weights), is_brief=True)
        [evaluations[name]] = run_evaluations(EvalRequest(runs=(folder / name,)))
    write_report(evaluations["run"])
    if flags.as_json:
        console.show_json({name: evaluation.to_dict() for name, evaluation in evaluations.items()})
        return
    show_evaluation(evaluations["run"])
    metric = METRICS[evaluations["run"].task.display.headline]
    scratch, tuned = (
        metric.format_with_unit(getattr(evaluations[name].metrics, metric.key)) for name in ("from-scratch", "run")
    )
    console.show("")
    console.show(
        f"{capitalise(metric.title)} on the test digits after {SETTINGS['epochs']} epochs: {tuned} from the "
        f"pretrained weights in the package, {scratch} newly initialised",
        style="bold",
    )
    _show_prediction(RunFolder(folder / "run"))
    console.show(f"Next: convnext predict {quote(folder / 'digits/7')} --run {quote(folder / 'run')}")


def _check_folder(folder: Path) -> None:
    """Check that the demo may write into a folder: it is new, empty or a demo's, and not in data, a run, or use."""
    from convnext_cli.data.digits import is_digits_folder
    from convnext_cli.data.layout import looks_like_data
    from convnext_cli.data.tree import is_hidden
    from convnext_cli.locks import check_unlocked
    from convnext_cli.runs.files import CONFIG, FOLDS_PLAN, SPLIT
    from convnext_cli.runs.folder import RunFolder

    remedy, digits = "Choose another --output", folder / "digits"
    if digits.exists() and not is_digits_folder(digits):
        raise UsageError(f"{digits} exists and was not written by a demo", remedy)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", remedy)
    if not digits.exists():
        if folder.is_dir() and not all(is_hidden(path.name) for path in folder.iterdir()):
            raise UsageError(f"{folder} exists already, and was not written by a demo", remedy)
        parent = next(path for path in folder.absolute().parents if path.is_dir())
        is_run = any(file.path(parent).exists() for file in (SPLIT, CONFIG, FOLDS_PLAN))  # `recommend -o` writes a plan
        for kind, is_kind in (("run", is_run), ("data", looks_like_data(parent))):
            if is_kind:
                raise UsageError(f"{folder} would lie in the {kind} folder {parent}", f"{remedy}, or start elsewhere")
    for run in (RunFolder(folder / name) for name in RUNS):
        if run.is_begun and not _is_demo_run(run):
            raise UsageError(f"{run.path} is a run that was not trained by a demo", remedy)
        check_unlocked(run.path)
        run.check_free(overwrite=True)


def _is_demo_run(run: "RunFolder") -> bool:
    """Return True if the demo chose the settings of a run."""
    from convnext_cli.recipes.plan import read_plan

    try:
        return any(choice.source == SOURCE for choice in read_plan(run.plan).choices.values())
    except UsageError:  # damaged
        return False


def _make_request(digits: Path, run: Path, weights: str) -> "TrainRequest":
    from convnext_cli.api import make_train_request

    request = make_train_request(
        {
            "data": digits,
            "model": load_builtin().architecture,
            "output": run,
            "weights": weights,
            "offline": True,
            "overwrite": True,
            "onnx": False,
            **SETTINGS,
        }
    )
    choices = {name: replace(choice, source=SOURCE) for name, choice in request.choices.items()}
    return replace(request, choices=choices)


def _show_prediction(run: "RunFolder") -> None:
    from convnext_cli.inference.prediction import predict_images
    from convnext_cli.inference.sources import list_sources

    index = run.read_split()
    image = index.root / index.paths[index.rows("test")[0]]
    [prediction] = predict_images(run.path, list_sources(image), PredictRequest())
    console.show(
        f"{console.shorten_path(image)}: {prediction.classes[0]}, {format_percent(prediction.probabilities[0], 1)}%"
    )
    console.show(f"Report: {console.shorten_path(run.report)} (open it in a browser)")
