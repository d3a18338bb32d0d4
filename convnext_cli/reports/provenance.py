"""Sections of a report on where the model comes from: training, data, settings, intended use."""

from collections.abc import Sequence

from convnext_cli.data.audit.findings import Kind
from convnext_cli.data.index import NONE, Index, describe_skipped
from convnext_cli.data.split import is_fold
from convnext_cli.errors import UsageError
from convnext_cli.metrics.intervals import count_units
from convnext_cli.models.licenses import is_non_commercial
from convnext_cli.progress import Notice
from convnext_cli.recipes.plan import read_plan
from convnext_cli.reports import plots
from convnext_cli.reports.section import Column, Listing, Plot, Plots, ReportData, Section, Table
from convnext_cli.runs.files import ENVIRONMENT
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import AuditRecord, Environment
from convnext_cli.text import format_count


def show_training(report: ReportData) -> Section | None:
    """Return which epoch was kept, with the curves of the training."""
    log = report.log
    if not log:
        return None
    epochs = sum(entry["epoch"] > 0 for entry in log)
    head = "" if epochs == len(log) else ", after training the head alone (epoch 0)"
    result = None if report.members else report.run.read_result()
    if result is None:
        kept = "The run has not finished."
    else:
        alone = "" if result.epoch else ", the head alone"
        kept = f"Best epoch: {result.epoch}{alone} ({result.selected_by})."
    curves = [Plot("loss", plots.plot_loss(log)), Plot("right", plots.plot_accuracy(log))]
    return Section(
        title="Training",
        sentences=[f"{format_count(epochs, 'epoch')}{head}. {kept}"],
        blocks=[Plots(title="Curves of the training", plots=curves)],
    )


def show_data(report: ReportData) -> Section:
    """Return the data set of the run by split and class, and the findings of its audit.

    Where other images are evaluated, these are named first: the audit is not of them.
    """
    index, audit = report.evaluation.test_set.index, report.evaluation.audit
    sentences: list[str | Notice] = []
    if report.evaluation.is_own:
        sentences += _describe_files("Data", index)
    else:
        sentences += _describe_files("Evaluated:", index)
        index = report.run.read_split()
        sentences += _describe_files("The rest of this section is on the run's own data:", index)
    if index.groups:
        groups = format_count(_count_groups(index, range(len(index))), "group (patient?)", "groups (patients?)")
        rule = f" by {audit.groups.rule}" if audit and audit.groups.rule else ""
        sentences.append(f"{groups}{rule}.")
    blocks: list[Table | Listing] = [*_tabulate_splits(index)]
    if audit is None:
        sentences.append("Leakage and duplicates are unknown: the audit was switched off, or cannot be read.")
        return Section(title="Data", sentences=sentences, blocks=blocks)
    sentences += _describe_split(report.run, audit, index)
    if audit.notes:
        blocks.append(Listing(title="Notes on reading the data", lines=audit.notes))
    findings = [finding for finding in audit.findings if finding.kind != Kind.UNSEEN_AREA]  # of another framing
    if not findings:
        shortcuts = ", no shortcuts" if audit.shortcuts else ""
        sentences.append(
            f"The audit found nothing: all files readable, no duplicates, no leakage between splits{shortcuts}."
        )
    for finding in findings:
        text = f"{finding.describe()}. In training: {finding.action}."
        sentences.append(Notice(text, "warning" if finding.falsifies else "note"))
        if finding.examples:
            blocks.append(Listing(title=f"Examples: {finding.title}", lines=finding.examples))
    return Section(title="Data", sentences=sentences, blocks=blocks)


def _describe_files(start: str, index: Index) -> list[str]:
    """Return the place and the number of the images, and what was skipped there."""
    skipped = [f"Skipped: {describe_skipped(index.skipped)}."] if index.skipped else []
    return [f"{start} {index.location}, {format_count(len(index), 'image')}.", *skipped]


def _tabulate_splits(index: Index) -> list[Table]:
    """Return the images, unknown labels and groups of each split; those of all folds of a cross-validation together."""
    folds = [row for row, split in enumerate(index.splits) if is_fold(split)]
    rows_of = {f"{len({index.splits[row] for row in folds})} folds": folds} if folds else {}
    rows_of |= {split: index.rows(split) for split in index.list_splits()}
    if not rows_of:
        return []
    word, parts = index.task.display.target_word, list(rows_of.values())
    targets = [index.targets(rows) for rows in parts]
    counts = [index.task.count(values, len(index.classes)) for values in targets]
    labels = range(len(index.classes)) if index.values else ()  # one class per image is always known
    unknown = [
        sum(len(values) - int(index.task.select_known(values, k)[1].sum()) for k in labels) for values in targets
    ]
    numbers = [(name, [n[k] for n in counts]) for k, name in enumerate(index.classes)]
    if not index.task.is_continuous:
        numbers.append(("images", [len(rows) for rows in parts]))
        if any(unknown):
            numbers.append(("unknown labels", unknown))
    if index.groups:
        numbers.append(("groups (such as patients)", [_count_groups(index, rows) for rows in parts]))
    columns = [Column(word, is_number=False), *map(Column, rows_of)]
    rows = [(name, *(f"{number:,}" for number in row)) for name, row in numbers]
    return [Table(title=f"Images by {word} and split", columns=columns, rows=rows)]


def _describe_split(run: RunFolder, audit: AuditRecord, index: Index) -> list[str]:
    """Return which splits are the data's own, and how the others were drawn.

    Nothing is said of folds, which may be those of a table, nor where the plan or the audit is of an earlier version.
    """
    try:
        settings = read_plan(run.plan).settings
    except UsageError:
        return []
    if not audit.classes or settings.get("leave_out", NONE) != NONE:
        return []
    splits = [split for split in index.list_splits() if split == "test" or not settings.get("folds")]
    own = [split for split in splits if split in audit.classes]
    drawn = [split for split in splits if split not in audit.classes]
    sentences = [f"The data's own splits: {', '.join(own)}."] if own else []
    if drawn:
        sentences.append(
            f"Drawn at random, with seed {settings.get('seed')} and stratified by {index.task.display.strata}: "
            f"{', '.join(drawn)}. The draw keeps a group, and the copies of an image that were found, together."
        )
    return sentences


def _count_groups(index: Index, rows: Sequence[int]) -> int:
    return count_units(len(rows), index.list_groups(rows))


def show_settings(report: ReportData) -> Section | None:
    """Return the settings with their reasons, and the environment of the training."""
    blocks = []
    if settings := _read_settings(report.run):
        names = ("setting", "value", "source")
        columns = [Column(name, is_number=False) for name in names]
        blocks.append(Table(title="Settings", columns=columns, rows=settings))
    if environment := report.run.read(ENVIRONMENT, Environment):
        rows = [
            ("device", environment.device),
            ("processes", str(environment.num_processes or "")),
            ("platform", environment.platform),
            ("python", environment.python),
            ("git", environment.git or ""),
            ("packages", ", ".join(f"{name} {number}" for name, number in environment.packages.items())),
            ("command", " ".join(environment.command)),
        ]
        columns = [Column(name, is_number=False) for name in ("environment", "value")]
        filled = [row for row in rows if row[1]]
        blocks.append(Table(title="Training environment", columns=columns, rows=filled))
    if not blocks:
        return None
    counted = f"{len(settings)} settings, each with its source"
    unknown = "settings unknown: the run's plan is gone or cannot be read"
    sentence = f"{report.config.architecture}, {counted if settings else unknown}."
    return Section(title="Settings", sentences=[sentence], blocks=blocks)


def _read_settings(run: RunFolder) -> list[tuple[str, str, str]]:
    """Return the settings with their reasons; none where the plan is gone or cannot be read."""
    try:
        return read_plan(run.plan).rows
    except UsageError:
        return []


def show_limits(report: ReportData) -> Section:
    """Return the intended use, its limits and the licence."""
    evaluation, calibration = report.evaluation, report.evaluation.calibration
    height, width = report.config.pretrained_cfg.input_size[1:]
    license = report.config.pretrained_cfg.license
    flagged = ""
    if calibration and calibration.novelty_threshold is not None:
        flagged = (
            f": those with an OOD score ({calibration.novelty_score}) above {calibration.novelty_threshold:.3f}, which "
            f"at most {100 * calibration.novelty_rate:.0f}% of the validation images exceed"
        )
    limit = ": not for commercial use; this holds for the fine-tuned model too" if is_non_commercial(license) else ""
    source = "not recorded (random weights, or your own)"
    if license:
        source = f"{license}{limit}"
    classes = evaluation.task.describe_classes(evaluation.images.classes)
    purpose = (
        f"This model was trained to predict {classes} for images like those of its training, shown at {height} x "
        f"{width} px. This report measures it on the images named above only. Other cameras, scanners, hospitals or "
        "populations can make it worse; measure it there before use."
    )
    foreign = (
        "It also makes a prediction for an image of something else. predict --abstain flags out-of-distribution (OOD) "
        f"images{flagged}."
    )
    device = "It is not a medical device and does not replace a human decision."
    return Section(title="Intended use and limitations", sentences=[purpose, foreign, device, f"Licence: {source}."])
