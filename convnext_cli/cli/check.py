"""`convnext check`: faults of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.options import JsonFlag, OptionValues, quote_settings, with_options
from convnext_cli.cli.streams import survive_lost_reader
from convnext_cli.data.audit.findings import Kind
from convnext_cli.data.index import SPLITS, check_trainable, describe_skipped
from convnext_cli.options import DataOption, Option
from convnext_cli.recipes.settings import READING_SETTINGS
from convnext_cli.text import format_count, format_percent, quote, shorten_name
from convnext_cli.training.request import DATA_HELP

if TYPE_CHECKING:
    from convnext_cli.data.audit.summary import Audit

FALSE_SCORE = 3  # the exit code where a finding falsifies test scores


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckFlags:
    """Options of the command alone."""

    data: Annotated[Path, DataOption(DATA_HELP, is_argument=True)]
    fix_list: Annotated[
        Path | None,
        Option("Write the images to leave out to this file, for `finetune --exclude`.", is_common=True, metavar="FILE"),
    ] = None
    overwrite: Annotated[bool, Option("Replace an existing file at --fix-list.", is_common=True)] = False
    as_json: JsonFlag = False


@with_options(CheckFlags, settings=READING_SETTINGS)
def check(values: OptionValues) -> None:
    """Check a data set for unreadable files, duplicates and leakage. Exits with 3 if test scores will be wrong."""
    from convnext_cli.api import check_steps
    from convnext_cli.data.audit.fix_list import check_fix_list, write_fix_list

    flags = values.make(CheckFlags)
    settings = values.select(READING_SETTINGS)
    if flags.fix_list is not None:
        check_fix_list(flags.fix_list, flags.data, overwrite=flags.overwrite)
    audit = console.run("checking images", check_steps(flags.data, settings))
    with survive_lost_reader():
        if flags.as_json:
            console.show_json(audit.to_dict())
        else:
            _show(audit)
    written = 0
    if flags.fix_list is not None:
        written = write_fix_list(audit, flags.fix_list, overwrite=flags.overwrite)
        console.say(f"wrote {format_count(written, 'path')} to {flags.fix_list}")
    check_trainable(audit.index)
    if not flags.as_json:
        reason, command = _build_next(flags.data, flags.fix_list if written else None, settings, audit)
        with survive_lost_reader():
            _show_verdict(audit)
            if reason:
                console.show(reason)
            console.show(f"Next: {command}")
    if audit.falsifies:
        raise typer.Exit(FALSE_SCORE)


def _build_next(data: Path, fix_list: Path | None, settings: Mapping[str, Any], audit: "Audit") -> tuple[str, str]:
    """Return the reason and the next command: `recommend`, or `check` with a remedy."""
    kept = {name: value for name, value in settings.items() if name != "resplit"}
    if not audit.falsifies:
        kept.pop("group_from", None)
        left_out = [f"--exclude {quote(fix_list)}"] if fix_list and "exclude" not in settings else []
        return "", " ".join([f"convnext recommend {quote(data)}", *quote_settings(kept), *left_out])
    check = " ".join([f"convnext check {quote(data)}", *quote_settings(kept)])
    if fix_list is not None and "exclude" not in settings:
        return "Check the data without the images of the fix-list.", f"{check} --exclude {quote(fix_list)}"
    is_of_splits = all(finding.is_leakage for finding in audit.findings if finding.falsifies)
    if is_of_splits and any(audit.index.splits) and not settings.get("resplit"):
        return "New splits may be free of leakage.", f"{check} --resplit"
    return "A fix-list names the images to leave out.", f"{check} --fix-list leave-out.csv"


def _show(audit: "Audit") -> None:
    index = audit.index
    splits = sorted(set(index.splits), key=(*SPLITS, "").index)
    images = format_count(len(index), "image")
    console.show(f"{index.location}: {images}; {index.task.describe_classes(index.classes)}", style="bold")
    counts = zip(*(index.count_classes(split) for split in splits), strict=True)
    columns = [split or "images" for split in splits]
    console.show_table(
        [index.task.display.target_word, *columns],
        ((shorten_name(name), *(f"{n:,}" for n in row)) for name, row in zip(index.classes, counts, strict=True)),
        numbers=columns,
        part="class",
    )
    _show_facts(audit)
    for finding in audit.findings:
        console.show("")
        style: console.Style = "bold red" if finding.falsifies else "bold yellow"
        console.show(f"{finding.severity}: {finding.title}", style=style)
        for example in finding.examples:
            console.show(f"    {example}")
        console.show(f"  effect    {finding.explanation}")
        console.show(f"  finetune  {finding.action}")


def _show_facts(audit: "Audit") -> None:
    """Show sizes, formats, layout, groups, and what metadata alone predicts."""
    from convnext_cli.data.audit.shortcuts import MIN_PER_CLASS  # NumPy

    index, grouping = audit.index, audit.grouping
    sizes = ", ".join(f"{name} {width} x {height}" for name, (width, height) in audit.sizes.items())
    console.show(f"sizes     {sizes} px")
    parts = [
        f"{unseen} at --crop-pct {crop_pct:g}" for crop_pct, unseen in audit.unseen.items() if not unseen.rounds_to_none
    ]
    if parts:
        console.show(f"unseen    by a square centre crop: {'; '.join(parts)}")
    console.show(f"formats   {', '.join(f'{count:,} {name}' for name, count in audit.formats.items())}")
    if index.skipped:
        console.show(f"skipped   {describe_skipped(index.skipped)}")
    for note in index.notes:
        console.show(f"layout    {note}")
    groups = f"{grouping.groups:,} by {grouping.rule}" if grouping.groups else grouping.rule
    console.show(f"groups    {groups}")
    if grouping.is_guess:
        console.show(f"          a guess, {grouping.certainty}: {grouping.evidence}")
    for path, group in grouping.examples:
        console.show(f"          {path} -> {group}")
    if audit.shortcuts:
        scores = ", ".join(f"{shortcut.name} {format_percent(shortcut.score)}%" for shortcut in audit.shortcuts)
        chance = audit.shortcuts[0].chance
        large, display = round(1 / chance), index.task.display
        some = "" if display.strata == display.target_words else f", of {large} {display.strata}"
        if not some and large < len(index.classes):
            some = f", of the {large} {display.strata} with {MIN_PER_CLASS} images or more"
        console.show(f"balanced accuracy from metadata alone (chance {format_percent(chance)}%{some}): {scores}")


def _show_verdict(audit: "Audit") -> None:
    console.show("")
    if audit.falsifies:
        console.show("Scores on this data will be wrong, for the reasons above.", style="bold red")
    else:
        doubt = any(finding.leaves_doubt or finding.kind is Kind.POSSIBLE_CONFLICTS for finding in audit.findings)
        certain = "No certain leakage or label conflicts found; see the notes on possible ones."
        console.show(certain if doubt else "No leakage or label conflicts found.", style="bold green")
