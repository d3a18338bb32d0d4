"""`convnext check`: what may be wrong with a data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.options import given, name_flag, with_settings
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.data.audit.summary import Audit
    from convnext_cli.data.dataset import DatasetRequest

DATA_HELP = "Folder of <class>/ or {train,val,test}/<class>/ folders, a CSV file with path and label, or a zip file."
FALSE_SCORE = 3  # the exit code where a finding makes a score false


@with_settings("image_root", "exclude", "group_from", "resplit")
def check(
    data: Annotated[Path, typer.Argument(help=DATA_HELP)],
    fix_list: Annotated[
        Path | None, typer.Option(help="Write the images to leave out to this file, for `finetune --exclude`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --fix-list.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **settings: Any,
) -> None:
    """Check a data set. Finds unreadable files, duplicates, leakage; exits with 3 if test scores will be wrong."""
    from convnext_cli.data.audit.fix_list import check_fix_list, write_fix_list
    from convnext_cli.data.dataset import DatasetRequest
    from convnext_cli.data.index import check_trainable

    if fix_list is not None:
        check_fix_list(fix_list, data, overwrite=overwrite)
    audit = run_audit(DatasetRequest(data=data, **given(settings)))
    if as_json:
        console.show_json(audit.as_dict())
    else:
        _show(audit)
    written = 0
    if fix_list is not None:
        written = write_fix_list(audit, fix_list, overwrite=overwrite)
        console.say(f"wrote {written} path{'s' if written != 1 else ''} to {fix_list}")
    check_trainable(audit.index)
    if not as_json:
        _show_verdict(audit)
        reason, command = _build_next(data, fix_list if written else None, given(settings), audit)
        if reason:
            console.show(reason)
        console.show(f"Next: {command}")
    if audit.falsifies:
        raise typer.Exit(FALSE_SCORE)


def _build_next(data: Path, fix_list: Path | None, settings: Mapping[str, Any], audit: "Audit") -> tuple[str, str]:
    """Return why, and the command that a person gives next: `recommend`, or `check` of what may mend the data."""
    flags = [f"{name_flag(name)} {quote(value)}" for name, value in settings.items() if not isinstance(value, bool)]
    if not audit.falsifies:
        kept = [flag for flag in flags if not flag.startswith("--group-from")]
        left_out = [f"--exclude {quote(fix_list)}"] if fix_list and "exclude" not in settings else []
        return "", " ".join([f"convnext recommend {quote(data)}", *kept, *left_out])
    check = " ".join([f"convnext check {quote(data)}", *flags])
    if fix_list is not None and "exclude" not in settings:
        return "Check what is left without the images of the fix-list.", f"{check} --exclude {quote(fix_list)}"
    is_of_splits = all(finding.is_leakage for finding in audit.findings if finding.falsifies)
    if is_of_splits and any(audit.index.splits) and not settings.get("resplit"):
        return "New splits may be free of it.", f"{check} --resplit"
    return "A fix-list names the images to leave out.", f"{check} --fix-list leave-out.csv"


def run_audit(request: "DatasetRequest") -> "Audit":
    """Audit a data set with a progress bar."""
    from convnext_cli.data.dataset import load_dataset
    from convnext_cli.machine import count_cpus

    audit = console.run("checking images", load_dataset(request, threads=count_cpus())).audit
    assert audit is not None
    return audit


def _show(audit: "Audit") -> None:
    index, grouping = audit.index, audit.grouping
    splits = sorted(set(index.splits), key=("train", "val", "test", "").index)
    console.show(f"{index.root}: {len(index):,} images in {len(index.classes)} classes", style="bold")
    counts = [index.count_classes(split) for split in splits]
    columns = [split or "images" for split in splits]
    console.show_table(
        ["class", *columns],
        ((name, *(f"{n:,}" for n in row)) for name, row in zip(index.classes, zip(*counts, strict=True), strict=True)),
        numbers=columns,
    )
    sizes = ", ".join(f"{name} {width} x {height}" for name, (width, height) in audit.sizes.items())
    console.show(f"sizes     {sizes} px")
    console.show(f"formats   {', '.join(f'{count:,} {name}' for name, count in audit.formats.items())}")
    if index.skipped:
        console.show(f"skipped   {', '.join(f'{count:,} {reason}' for reason, count in index.skipped.items())}")
    for note in index.notes:
        console.show(f"layout    {note}")
    groups = f"{grouping.groups:,} by {grouping.rule}" if grouping.groups else grouping.rule
    console.show(f"groups    {groups}")
    if grouping.is_guess:
        console.show(f"          a guess, {grouping.certainty}: {grouping.evidence}")
    for path, group in grouping.examples:
        console.show(f"          {path} -> {group}")
    if audit.shortcuts:
        told = ", ".join(f"{found.name} {found.score:.0%}" for found in audit.shortcuts)
        chance = audit.shortcuts[0].chance
        console.show(f"balanced accuracy from metadata alone (chance {chance:.0%}): {told}")
    for finding in audit.findings:
        console.show("")
        style = "bold red" if finding.falsifies else "bold yellow"
        console.show(f"{finding.severity}: {finding.title}", style=style)
        for example in finding.examples:
            console.show(f"    {example}")
        console.show(f"  effect    {finding.effect}")
        console.show(f"  finetune  {finding.action}")


def _show_verdict(audit: "Audit") -> None:
    console.show("")
    if audit.falsifies:
        console.show("Test scores on this data will be wrong, for the reasons above.", style="bold red")
    else:
        doubt = any(finding.is_possible_leakage for finding in audit.findings)
        certain = "No certain leakage or label conflicts found; see the notes on possible leakage."
        console.show(certain if doubt else "No leakage or label conflicts found.", style="bold green")
