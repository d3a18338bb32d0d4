"""`report.html`: one file, no network, no script; what it shows was computed elsewhere."""

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
from convnext_cli.metrics.intervals import Interval
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.recipes.plan import read_plan, read_reasons
from convnext_cli.reports import plots
from convnext_cli.reports.gallery import draw_images, pick_images
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, open_folder

MAX_CONFUSION = 20  # classes; a wider table helps nobody, and the plot beside the report has it

TILES = (
    ("top1", "Accuracy", "%"), ("macro_f1", "Macro F1", "%"), ("macro_roc_auc", "Macro ROC AUC", "%"),
    ("macro_pr_auc", "Macro PR AUC", "%"), ("mcc", "MCC", ""), ("kappa", "Cohen's kappa", ""),
    ("ece", "Calibration error", "%"), ("log_loss", "Log loss", ""),
)  # fmt: skip


def write_report(evaluation: Evaluation, *, on_event: OnEvent = None) -> Path:
    """Write the report of an evaluation, `report.html`, and its plots as PNG files into the run; return its path.

    Args:
        evaluation: what `evaluate` returned.
        on_event: called with each `Progress`.

    Raises:
        OSError: there is no room on the disk. A former report and its plots are then as they were.
    """
    return finish(write_report_steps(evaluation), on_event)


def write_report_steps(found: Evaluation) -> Steps[Path]:
    """Write the report of an evaluation, as `write_report` does."""
    run = open_folder(found.run)
    log = run.read_log()
    drawings = {"roc": plots.plot_roc, "pr": plots.plot_pr, "reliability": plots.plot_reliability}
    total = len(drawings) + 4
    svg = {}
    run.plots.mkdir(exist_ok=True)
    with ExitStack() as stack:  # all files get their names at the end, or none does

        def keep(name: str, figure: Figure) -> None:
            plots.write_png(figure, stack.enter_context(replace_file(run.plots / f"{name}.png")))

        for done, (name, draw) in enumerate(drawings.items()):
            yield Progress(done=done, total=total, activity="drawing")
            figure = draw(found)
            svg[name] = Markup(plots.make_svg(figure, name))  # noqa: S704  (matplotlib escapes the names in it)
            keep(name, figure)
        if log:
            for name, figure in (("loss", plots.plot_loss(log)), ("right", plots.plot_right(log))):
                svg[name] = Markup(plots.make_svg(figure, name))  # noqa: S704
                keep(name, figure)
        yield Progress(done=total - 3, total=total, activity="drawing")
        keep("confusion", plots.plot_confusion(found))
        worst, unsure = pick_images(found)
        yield Progress(done=total - 2, total=total, activity="looking where the model looks")
        pictures = draw_images(found, [*worst, *unsure])
        chosen = {
            "worst": [pictures[i] for i in worst if i in pictures],
            "unsure": [pictures[i] for i in unsure if i in pictures],
        }
        yield Progress(done=total - 1, total=total, activity="writing")
        page = stack.enter_context(replace_file(run.report))
        page.write_text(render_page(found, run, svg, chosen), encoding="utf-8", errors="surrogateescape", newline="")
    return run.report


def render_page(found: Evaluation, run: RunFolder, svg: dict[str, Markup], pictures: dict[str, Any]) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "share": _share,
        "between": _between,
        "number": _number,
        "shown": lambda name: plots.shown(str(name)),
    }
    folder = files("convnext_cli.reports")
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    index = found.evaluated.test_set.index
    members = run.list_runs() if isinstance(run, FoldsFolder) else []
    config = (members[0] if members else run).read_config()
    result = None if members else run.read_result()
    environment_record = run.read_environment()
    return template.render(
        found=found,
        metrics=found.metrics,
        sure=found.intervals,
        fitted=found.calibration if found.calibration and found.calibration.weak is None else None,
        members=len(members),
        model=config.architecture,
        input_size=config.pretrained_cfg.input_size[1],
        license=config.pretrained_cfg.license,
        classes=list(zip(found.metrics.per_class, found.intervals.per_class, strict=True)),
        confusion=found.metrics.confusion if len(found.metrics.per_class) <= MAX_CONFUSION else None,
        tiles=TILES,
        svg=svg,
        pictures=pictures,
        log=run.read_log(),
        kept=result,
        index=index,
        counts={split: index.count_classes(split) for split in ("train", "val", "test") if split in index.splits},
        audit=found.audit,
        settings=_read_settings(run),
        environment=environment_record and to_builtins(environment_record),
        made=datetime.now().astimezone(),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704  (our own file)
    )


def _read_settings(run: RunFolder) -> list[tuple[str, Any, str]]:
    """Every setting with its reason; none where the plan is gone or was written by another version."""
    try:
        settings, reasons = read_plan(run.plan)[2], read_reasons(run.plan)
    except (UsageError, OSError):
        return []
    return [(name, value, reasons.get(name, "")) for name, value in settings.items()]


def _share(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _between(interval: Interval | None, scale: float = 100, digits: int = 1) -> str:
    return "" if interval is None else f"{scale * interval.low:.{digits}f} to {scale * interval.high:.{digits}f}"
