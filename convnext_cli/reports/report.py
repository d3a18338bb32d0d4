"""The report of an evaluation: `report.html`, one file without scripts and network requests."""

from contextlib import ExitStack
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from msgspec import to_builtins

from convnext_cli.errors import UsageError
from convnext_cli.files import replace_file
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.registry import METRICS, MISSING, format_ci
from convnext_cli.models.licenses import is_non_commercial
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.recipes.plan import read_plan, read_reasons
from convnext_cli.reports import plots
from convnext_cli.reports.gallery import GalleryImage, draw_images, pick_images
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, open_folder
from convnext_cli.text import make_visible

MAX_CONFUSION = 20  # classes; for more, see `plots/confusion.png`

MATRIX = "confusion"
CALIBRATION_PLOT = "reliability"


def write_report(evaluation: Evaluation, *, on_event: OnEvent = None) -> Path:
    """Write the report of an evaluation, `report.html`, and its plots as PNG files into the run; return its path.

    Args:
        evaluation: the result of `evaluate`.
        on_event: called with each `Progress`.

    Raises:
        OSError: the disk is full. An existing report and its plots are not changed.
    """
    return finish(write_report_steps(evaluation), on_event)


def write_report_steps(evaluation: Evaluation) -> Steps[Path]:
    """Write the report of an evaluation, as `write_report` does."""
    run = open_folder(evaluation.run)
    log = run.read_log()
    drawings = {name: plots.PLOTS[name] for name in evaluation.task.display.plots if name != MATRIX}
    total = len(drawings) + 4
    svg = {}
    run.plots.mkdir(exist_ok=True)
    with ExitStack() as stack:  # all files are renamed at the end, or none is

        def keep(name: str, figure: Figure) -> None:
            plots.write_png(figure, stack.enter_context(replace_file(run.plots / f"{name}.png")))

        for done, (name, draw) in enumerate(drawings.items()):
            yield Progress(done=done, total=total, activity="drawing plots")
            figure = draw(evaluation)
            svg[name] = Markup(plots.make_svg(figure, name))  # noqa: S704  (matplotlib escapes the names in it)
            keep(name, figure)
        if log:
            for name, figure in (("loss", plots.plot_loss(log)), ("right", plots.plot_accuracy(log))):
                svg[name] = Markup(plots.make_svg(figure, name))  # noqa: S704
                keep(name, figure)
        yield Progress(done=total - 3, total=total, activity="drawing plots")
        if MATRIX in evaluation.task.display.plots:
            keep(MATRIX, plots.plot_confusion(evaluation))
        worst, unsure = pick_images(evaluation)
        yield Progress(done=total - 2, total=total, activity="drawing heat maps")
        images = draw_images(evaluation, [*worst, *unsure])
        gallery = {
            "worst": [images[i] for i in worst if i in images],
            "unsure": [images[i] for i in unsure if i in images],
        }
        yield Progress(done=total - 1, total=total, activity="writing the report")
        page = stack.enter_context(replace_file(run.report))
        text = render_page(evaluation, run, svg, gallery)
        page.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return run.report


def render_page(
    evaluation: Evaluation, run: RunFolder, svg: dict[str, Markup], gallery: dict[str, list[GalleryImage]]
) -> str:
    """Return the report as HTML.

    Args:
        evaluation: of the run.
        run: the run folder.
        svg: the plots by name.
        gallery: the images by kind, `worst` and `unsure`.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": _format_percent,
        "ci": format_ci,
        "visible": lambda name: make_visible(str(name)),
    }
    folder = files("convnext_cli.reports")
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    calibration, display = evaluation.calibration, evaluation.task.display
    return template.render(
        evaluation=evaluation,
        metrics=evaluation.metrics,
        intervals=evaluation.intervals,
        calibration=calibration if calibration and calibration.is_fitted else None,
        registry=METRICS,
        display=display,
        headline=METRICS[display.headline],
        tiles=[METRICS[key] for key in display.tiles],
        class_heading=display.class_heading,
        class_columns=[METRICS[key] for key in display.report_classes],
        curves=[name for name in display.plots if name not in (MATRIX, CALIBRATION_PLOT)],
        curves_heading=display.curves_heading,
        confidence_note=display.confidence_note,
        classes=list(zip(evaluation.metrics.per_class, evaluation.intervals.per_class, strict=True)),
        confusion=evaluation.metrics.confusion if len(evaluation.metrics.per_class) <= MAX_CONFUSION else (),
        svg=svg,
        max_curves=plots.MAX_CURVES,
        gallery=gallery,
        created=datetime.now().astimezone(),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704  (our own file)
        **_describe_run(run),
        **_describe_data(evaluation),
    )


def _describe_run(run: RunFolder) -> dict[str, Any]:
    """Return the model, the training and the environment of a run, for the template."""
    members = run.list_runs() if isinstance(run, FoldsFolder) else []
    config = (members[0] if members else run).read_config()
    environment = run.read_environment()
    license = config.pretrained_cfg.license
    return {
        "members": len(members),
        "model": config.architecture,
        "input_size": config.pretrained_cfg.input_size[1:],
        "license": license,
        "is_non_commercial": is_non_commercial(license),
        "log": run.read_log(),
        "result": None if members else run.read_result(),
        "settings": _read_settings(run),
        "environment": environment and to_builtins(environment),
    }


def _describe_data(evaluation: Evaluation) -> dict[str, Any]:
    """Return the data set and its audit, for the template."""
    index = evaluation.evaluated.test_set.index
    splits = [split for split in ("train", "val", "test") if split in index.splits]
    return {
        "index": index,
        "counts": {split: index.count_classes(split) for split in splits},
        "audit": evaluation.audit,
    }


def _read_settings(run: RunFolder) -> list[tuple[str, Any, str]]:
    """Return the settings with their reasons; none where the plan is gone or cannot be read."""
    try:
        settings, reasons = read_plan(run.plan)[2], read_reasons(run.plan)
    except (UsageError, OSError):
        return []
    return [(name, value, reasons.get(name, "")) for name, value in settings.items()]


def _format_percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction in percent, without the unit."""
    return MISSING if value is None else f"{100 * value:.{digits}f}"
