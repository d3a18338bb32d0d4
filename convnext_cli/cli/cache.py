"""`convnext cache`: what is kept so that it need not be made again."""

import time
from dataclasses import asdict
from typing import Annotated

import typer

from convnext_cli.cli import console


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show or clear the decoded images that are kept for later runs."""
    from convnext_cli.data.cache import DEFAULT_LIMIT, LIMIT, clear_pictures, list_pictures
    from convnext_cli.files import find_cache
    from convnext_cli.recipes.costs import GIB

    found = list_pictures()
    size = sum(pictures.size for pictures in found)
    if clear:
        clear_pictures()
    if as_json:
        console.show_json([asdict(pictures) for pictures in found])
    elif clear:
        console.show(f"Removed {size / GIB:.2f} GiB of decoded images from {find_cache()}")
    else:
        console.show(f"{find_cache()}: {size / GIB:.2f} GiB of decoded images", style="bold")
        if found:
            now = time.time()
            console.show_table(
                ["data", "prepared for", "images", "GiB", "days unused"],
                (
                    (one.root, one.purpose.partition(";")[0], f"{one.images:,}", f"{one.size / GIB:.2f}",
                     f"{(now - one.used) / 86400:.0f}")
                    for one in found
                ),
                numbers=["images", "GiB", "days unused"],
            )  # fmt: skip
        console.show(
            f"At most {DEFAULT_LIMIT:g} GiB unless ${LIMIT} says otherwise; what is unused for longest goes first. "
            "--clear removes all of it"
        )
