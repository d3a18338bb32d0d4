"""The first screen of a report: how good the model is, for whom, and whether the result can be trusted."""

from dataclasses import replace

from convnext_cli.data.audit.findings import Kind
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.thresholds import describe_missed, describe_unreachable
from convnext_cli.progress import Notice
from convnext_cli.reports.section import Section
from convnext_cli.reports.targets import describe_point
from convnext_cli.text import capitalise, format_count

MAX_CLASSES = 6  # whose numbers of images are listed


def answer_questions(evaluation: Evaluation) -> tuple[Section, ...]:
    """Return the three questions that a reader has first, with their answers."""
    task, metrics, targets = evaluation.task, evaluation.metrics, evaluation.images.targets
    results = task.describe_results(metrics, evaluation.probabilities, targets)
    chance = task.measure_chance(metrics, targets)
    return (
        Section(title="How good is it?", sentences=[*results, f"By chance: {chance.text}."]),
        Section(title="For whom?", sentences=_describe_images(evaluation)),
        Section(title="Can it be trusted?", sentences=_describe_trust(evaluation)),
    )


def _describe_images(evaluation: Evaluation) -> list[str]:
    metrics, intervals = evaluation.metrics, evaluation.intervals
    classes = [f"{entry.images:,} labelled {entry.name}" for entry in metrics.per_class]
    shown = f"; {', '.join(classes)}" if 0 < len(classes) <= MAX_CLASSES else ""
    split = "all images" if evaluation.split == "all" else f"the {evaluation.split} split"
    rest = " without the recalibration images" if evaluation.recalibration else ""
    groups = (
        f" of {format_count(intervals.units, 'group (such as a patient)', 'groups (such as patients)')}"
        if intervals.clustered
        else "; groups (such as patients) are not known"
    )
    return [
        f"Measured on {split} of {evaluation.data.name}{rest}: {format_count(metrics.images, 'image')}{groups}{shown}.",
        "Other scanners, hospitals and populations are not measured here; the model can be worse there.",
    ]


def _describe_trust(evaluation: Evaluation) -> list[str | Notice]:
    points = evaluation.operating_points
    fitted_on = evaluation.fitted_on
    unreachable = {describe_unreachable(point.threshold, f"{fitted_on} images") for point in points}
    known = {describe_missed(point) for point in points} | unreachable
    notes = (*evaluation.notes, *(evaluation.per_group.notes if evaluation.per_group else ()))
    warnings = [note for note in notes if note.severity == "warning" and note.text not in known]
    targets = [text for point in points for text in describe_point(point, fitted_on)]
    statements = [describe_chance(evaluation), *describe_leakage(evaluation), *targets]
    if number := evaluation.test_number:
        first = "This is the first evaluation of this run on a test split."
        again = f"This is evaluation {number} on a test split. Choosing a model by these results biases them upward."
        statements.append(first if number == 1 else again)
    return sorted([*warnings, *statements], key=lambda entry: isinstance(entry, str))  # warnings first


def describe_chance(evaluation: Evaluation) -> str | Notice:
    """Return a sentence on the headline metric beside chance, by its 95% CI.

    A chance level that depends on the images has their noise too: its difference to the model's metric has less.
    """
    headline = METRICS[evaluation.task.display.headline]
    chance = evaluation.task.measure_chance(evaluation.metrics, evaluation.images.targets)
    level, interval = headline.format_with_unit(chance.value), evaluation.intervals.overall[headline.key]
    bound, bound_text, evidence = chance.value, level, f"the 95% CI {headline.format_ci(interval)}"
    if chance.logits is not None:
        constant = replace(evaluation.images, logits=chance.logits, calibration=None)
        change = constant.compare(evaluation.images).differences[headline.key]
        interval, bound, bound_text = change.interval if change else None, 0.0, "0"
        difference = headline.format_difference(change)
        evidence = f"the {headline.title} differs from chance ({level}) by {difference}, which"
    if interval is None:
        return f"There are too few images to say whether it is better than chance ({level})."
    if bound < interval.low if headline.higher_is_better else bound > interval.high:
        return f"It is better than chance: {evidence} excludes {bound_text}."
    return Notice(f"not shown to be better than chance: {evidence} does not exclude {bound_text}", "warning")


def describe_leakage(evaluation: Evaluation) -> list[str]:
    """Return a sentence on leakage: possible, not found or unknown; none where a warning of the evaluation has it."""
    overlap, audit = evaluation.overlap, evaluation.audit
    if evaluation.is_own and evaluation.split in ("train", "all"):
        return []
    if overlap is not None:
        if overlap.trained or overlap.trained_near:
            return []
        if overlap.alike:
            return ["None of these images is a duplicate of a training image; near-duplicates are not recognised."]
        return ["No leakage found: none of these images is a duplicate or near-duplicate of a training image."]
    if not evaluation.is_own or audit is None:
        return ["It is not known whether training images are among these."]
    if any(finding.falsifies and finding.kind != Kind.CONFLICTING_LABELS for finding in audit.findings):
        return []
    if possible := [finding for finding in audit.findings if finding.leaves_doubt]:
        return [f"{capitalise(finding.counted_title)}. {capitalise(finding.effect)}." for finding in possible]
    groups = ", and no group has images in both" if evaluation.intervals.clustered else ""
    return [f"No leakage found: none of these images is a duplicate or near-duplicate of a training image{groups}."]
