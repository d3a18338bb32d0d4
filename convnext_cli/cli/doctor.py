"""`convnext doctor`: versions, devices and caches of this installation, and a self-test."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from convnext_cli.cli import console
from convnext_cli.cli.options import JsonFlag, OptionValues, with_options
from convnext_cli.options import Option

if TYPE_CHECKING:
    from convnext_cli.diagnosis import Diagnosis


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorFlags:
    """Options of the command."""

    offline: Annotated[bool, Option("Never contact the Hub.", is_common=True, env="HF_HUB_OFFLINE")] = False
    as_json: JsonFlag = False


@with_options(DoctorFlags)
def doctor(values: OptionValues) -> None:
    """Check this installation: versions, devices, a self-test. Exits with 1 if the self-test fails."""
    from convnext_cli.diagnosis import diagnose_steps

    flags = values.make(DoctorFlags)
    diagnosis = console.run("checking", diagnose_steps(offline=flags.offline))
    if flags.as_json:
        console.show_json(asdict(diagnosis))
    else:
        _show(diagnosis)
    if not diagnosis.works:
        raise typer.Exit(1)


def _show(diagnosis: "Diagnosis") -> None:
    console.show_table(["package", "version"], ((name, version or "-") for name, version in diagnosis.packages.items()))
    console.show("")
    console.show(f"python    {diagnosis.python} on {diagnosis.platform}")
    console.show(f"devices   {', '.join(diagnosis.devices)}")
    for name, cache in diagnosis.caches.items():
        console.show(f"cache     {name}: {cache.bytes / 1e6:,.1f} MB in {cache.path}")
    console.show(f"Hub       {diagnosis.hub}")
    for name, outcome in diagnosis.self_test.items():
        console.show(f"self-test {name}: {outcome}")
    if diagnosis.works:
        console.show("The self-test passed.", style="bold green")
    else:
        console.show("The self-test failed.", style="bold red")
