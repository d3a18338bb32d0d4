"""`convnext doctor`: what this installation has, and whether it works."""

from typing import TYPE_CHECKING, Annotated

import typer

from convnext_cli.cli import console

if TYPE_CHECKING:
    from convnext_cli.diagnosis import Diagnosis


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the Hub.", envvar="HF_HUB_OFFLINE")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this installation. Versions, devices, caches, the Hub, and a self-test; exits with 1 if that fails."""
    from dataclasses import asdict

    from convnext_cli.diagnosis import diagnose_steps

    found = console.run("checking", diagnose_steps(offline=offline))
    if as_json:
        console.show_json(asdict(found))
    else:
        _show(found)
    if not found.works:
        raise typer.Exit(1)


def _show(found: "Diagnosis") -> None:
    console.show_table(["package", "version"], ((name, version or "-") for name, version in found.packages.items()))
    console.show("")
    console.show(f"python    {found.python} on {found.platform}")
    console.show(f"devices   {', '.join(found.devices)}")
    for name, cache in found.caches.items():
        console.show(f"cache     {name}: {cache.bytes / 1e6:,.1f} MB in {cache.path}")
    console.show(f"Hub       {found.hub}")
    for name, outcome in found.self_test.items():
        console.show(f"self-test {name}: {outcome}")
    if found.works:
        console.show("It works.", style="bold green")
    else:
        console.show("The self-test failed.", style="bold red")
