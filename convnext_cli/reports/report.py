"""The report of an evaluation: `report.html`, one file without scripts and network requests."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from convnext_cli.errors import check_kind
from convnext_cli.files import replace_file
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.registry import METRICS, Metric
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.reports import per_group, performance, plots, provenance, sites, subgroups, targets
from convnext_cli.reports.gallery import draw_images, pick_images
from convnext_cli.reports.predictions import format_group_predictions, format_predictions
from convnext_cli.reports.section import Plots, ReportData, Section, Table
from convnext_cli.reports.verdict import answer_questions
from convnext_cli.runs.files import GROUP_PREDICTIONS, PREDICTIONS
from convnext_cli.runs.folds import FoldsFolder, open_folder
from convnext_cli.text import make_visible

SECTIONS = (
    targets.show_targets,
    per_group.show_groups,
    subgroups.show_subgroups,
    sites.show_left_out,
    sites.show_drift,
    performance.show_mistakes,
    performance.show_metrics,
    performance.show_calibration,
    provenance.show_training,
    provenance.show_data,
    provenance.show_settings,
    provenance.show_limits,
)
"""The functions that make the sections, in the order of the page; a section that is None is left out."""


def write_report(evaluation: Evaluation, *, on_event: OnEvent = None) -> Path:
    """Write the report of an evaluation into the run, and return its path.

    These files are written: `report.html`, its plots as PNG files, `predictions.csv` and, where groups were evaluated,
    `predictions-groups.csv`.

    Args:
        evaluation: the result of `evaluate`.
        on_event: called with each `Progress`.

    Raises:
        UsageError: `evaluation` is no `Evaluation`.
        OSError: the disk is full. An existing report and its plots are not changed.
    """
    return finish(write_report_steps(evaluation), on_event)


def write_report_steps(evaluation: Evaluation) -> Steps[Path]:
    """Write the report of an evaluation, as `write_report` does."""
    check_kind("evaluation", evaluation, Evaluation)
    run = open_folder(evaluation.run)
    total = len(SECTIONS) + 2
    yield Progress(done=0, total=total, activity="drawing heat maps")
    report = collect_data(evaluation)
    run.plots.mkdir(exist_ok=True)
    sections, svg = [], {}
    with ExitStack() as stack:  # all files are renamed at the end, or none is
        for done, show in enumerate(SECTIONS, start=1):
            yield Progress(done=done, total=total, activity="drawing plots")
            section = show(report)
            if section is None:
                continue
            sections.append(section)
            shown = [plot for block in section.blocks if isinstance(block, Plots) for plot in block.plots]
            for plot in shown:
                svg[plot.name] = Markup(plots.make_svg(plot.figure, plot.name))  # noqa: S704  (matplotlib escapes names)
            for plot in (*shown, *section.files):
                plots.write_png(plot.figure, stack.enter_context(replace_file(run.plots / f"{plot.name}.png")))
        yield Progress(done=total - 1, total=total, activity="writing the report")
        page = stack.enter_context(replace_file(run.report))
        text = render_page(report, sections, svg)
        page.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
        tables = {PREDICTIONS.path(run.path): format_predictions(evaluation)}
        if evaluation.per_group is not None:
            tables[GROUP_PREDICTIONS.path(run.path)] = format_group_predictions(evaluation.per_group)
        for path, table in tables.items():
            stack.enter_context(replace_file(path)).write_text(table, encoding="utf-8")
    return run.report


def collect_data(evaluation: Evaluation) -> ReportData:
    """Return everything that the report is made from, with the images of its gallery."""
    run = open_folder(evaluation.run)
    members = run.list_runs() if isinstance(run, FoldsFolder) else []
    worst, unsure = pick_images(evaluation)
    images = draw_images(evaluation, [*worst, *unsure])
    return ReportData(
        evaluation=evaluation,
        run=run,
        config=(members[0] if members else run).read_config(),
        members=len(members),
        log=run.read_log(),
        mistakes=tuple(images[i] for i in worst if i in images),
        uncertain=tuple(images[i] for i in unsure if i in images),
    )


def render_page(report: ReportData, sections: Sequence[Section], svg: Mapping[str, Markup]) -> str:
    """Return the report as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": lambda value: f"{100 * value:.2f}",
        "visible": lambda text: make_visible(str(text)),
        "prose": format_prose,
        "breakable": lambda text: Markup(re.sub("([=:@,])", r"\1<wbr>", str(escape(make_visible(text))))),  # noqa: S704
    }
    folder = files("convnext_cli.reports")
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    evaluation = report.evaluation
    headline = METRICS[evaluation.task.display.headline]
    return template.render(
        evaluation=evaluation,
        model=report.config.architecture,
        headline=headline,
        value=getattr(evaluation.metrics, headline.key),
        interval=evaluation.intervals.overall[headline.key],
        chance=evaluation.task.measure_chance(evaluation.metrics, evaluation.images.targets).value,
        questions=answer_questions(evaluation),
        notes=[note for note in evaluation.notes if note.severity == "note"],
        sections=sections,
        metrics=list_metrics(evaluation, sections),
        svg=svg,
        created=datetime.now().astimezone(),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),  # noqa: S704  (our own file)
    )


def format_prose(text: str) -> Markup:
    """Return a text as HTML, with what stands in backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(make_visible(text)))))  # noqa: S704  (escaped)


def list_metrics(evaluation: Evaluation, sections: Iterable[Section]) -> list[Metric]:
    """Return the metrics of an evaluation and those in the headings of tables, in the order of the registry."""
    display = evaluation.task.display
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    keys = {column.metric.key for table in tables for column in table.columns if column.metric}
    keys |= {display.headline, *display.table, *(key for _, key in display.calibration)}
    return [metric for key, metric in METRICS.items() if key in keys]
