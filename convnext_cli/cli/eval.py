"""`convnext eval`: metrics of a run with confidence intervals, and comparisons of runs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from convnext_cli.cli import console
from convnext_cli.cli.evaluation_view import show_comparison, show_evaluation, summarise_evaluation
from convnext_cli.cli.options import JsonFlag, OptionValues, with_options
from convnext_cli.cli.predict import find_run
from convnext_cli.cli.streams import survive_lost_reader
from convnext_cli.errors import ConvnextError, RunError, UsageError
from convnext_cli.inference.request import EVAL_RUN, EvalRequest
from convnext_cli.options import DataOption, Option
from convnext_cli.runs.files import PREDICTIONS
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.metrics.comparison import Comparison


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalFlags:
    """Options of the command alone."""

    paths: Annotated[
        tuple[Path, ...],
        DataOption(
            "Run folders; default: the newest run. Another folder is the data.",
            metavar="[RUN]... [DATA]",
            completion="run",
            is_argument=True,
        ),
    ] = ()
    report: Annotated[
        bool, Option("Write report.html, its plots and predictions.csv into the run.", is_common=True)
    ] = True
    as_json: JsonFlag = False


@with_options(EvalRequest, EvalFlags)
def evaluate(values: OptionValues) -> None:
    """Evaluate or compare runs: metrics with 95% CIs, and a report. The report is written into the run."""
    flags = values.make(EvalFlags)
    runs, data = _sort_paths(flags.paths, values.get("data"))
    request = values.make(EvalRequest, runs=tuple(runs or [find_run(None, EVAL_RUN)]), data=data)
    evaluations = run_evaluations(request)
    comparisons = _compare(evaluations)
    if flags.as_json:
        first = evaluations[0].to_dict()
        with survive_lost_reader():
            console.show_json(first if len(evaluations) == 1 else _describe_all(evaluations, comparisons))
        for evaluation in evaluations if flags.report else ():
            write_report(evaluation)
        return
    for evaluation in evaluations:
        with survive_lost_reader():
            show_evaluation(evaluation)
    for evaluation, comparison in zip(evaluations[1:], comparisons, strict=True):
        show_comparison(evaluations[0], evaluation, comparison)
    if flags.report:  # after the metrics: they are not lost where the report cannot be written
        for evaluation in evaluations:
            report = write_report(evaluation)
            with survive_lost_reader():
                console.show(f"Report: {console.shorten_path(report)}")
                console.show(f"Predictions: {console.shorten_path(PREDICTIONS.path(evaluation.run))}")
    if len(evaluations) == 1:
        console.show(summarise_evaluation(evaluations[0]))
        command = f"convnext predict IMAGE --run {quote(console.shorten_path(evaluations[0].run))}"
        if request.save_calibration is not None:
            command += f" --calibration {quote(console.shorten_path(request.save_calibration))}"
        console.show(f"Next: {command}")


def _sort_paths(paths: tuple[Path, ...], data: Path | None) -> tuple[list[Path], Path | None]:
    """Return the run folders and the data among paths."""
    from convnext_cli.runs.folder import RunFolder

    for path in paths:
        if not path.exists():
            raise RunError(f"{path} does not exist", "Give a run folder, or a folder of images")
    runs = [path for path in paths if RunFolder(path).is_run]
    others = [*(path for path in paths if path not in runs), *([data] if data else [])]
    if len(others) > 1:
        names = ", ".join(map(str, others))
        raise UsageError(f"{names}: only one of these can be the data, and none is a run", "Give runs, and one DATA")
    return runs, others[0] if others else None


def run_evaluations(request: EvalRequest) -> "list[Evaluation]":
    """Evaluate with a progress bar, all runs on the images of the first."""
    from convnext_cli.api import evaluate_runs

    return console.run("evaluating", evaluate_runs(request))


def write_report(evaluation: "Evaluation") -> Path:
    """Write the report with a progress bar, and return its path.

    Raises:
        ConvnextError: the run's folder cannot be written, such as another user's.
    """
    from convnext_cli.api import report_evaluation

    try:
        return console.run("report", report_evaluation(evaluation))
    except OSError as error:
        if not error.filename:  # a terminal that is gone
            raise
        problem = f"cannot write the report ({error.filename}: {error.strerror})"
        raise ConvnextError(problem, "Make the run's folder writable, free disk space, or add --no-report") from error


def _compare(evaluations: "list[Evaluation]") -> "list[Comparison]":
    first, *others = evaluations
    comparisons: list[Comparison] = []
    if not others:
        return comparisons
    with console.progress("comparing") as bar:
        for other in others:
            bar.update(len(comparisons), len(others), "bootstrapping the 95% CIs")
            comparisons.append(first.compare(other))
    return comparisons


def _describe_all(evaluations: "list[Evaluation]", comparisons: "list[Comparison]") -> dict[str, object]:
    pairs = [
        {"first": evaluations[0].run, "second": second.run} | asdict(comparison)
        for second, comparison in zip(evaluations[1:], comparisons, strict=True)
    ]
    return {"runs": [evaluation.to_dict() for evaluation in evaluations], "comparisons": pairs}
