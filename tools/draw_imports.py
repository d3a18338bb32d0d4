"""Draw the rooms of a checkout's package by floor, with the imports between them, and print the counts.

    python tools/draw_imports.py CHECKOUT OUT.svg

A room is a folder or a module directly in `convnext_cli/`. Its floor is one above the highest room that it imports. A
pair of rooms with an import, in a function too, is an arrow. A circle of rooms is an error.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from matplotlib.figure import Figure

Arrows = dict[str, set[str]]


def find_arrows(package: Path) -> Arrows:
    """Return the rooms that each room of a package imports."""
    arrows: Arrows = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        targets = arrows.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}."):
                targets.add(str(node.module).split(".")[1])
        targets.discard(room)
    return arrows


def assign_floors(arrows: Arrows) -> dict[str, int]:
    """Return the floor of each room, from 1.

    Raises:
        CycleError: rooms import each other in a circle.
    """
    floors: dict[str, int] = {}
    for room in TopologicalSorter(arrows).static_order():
        floors[room] = 1 + max((floors[target] for target in arrows.get(room, ())), default=0)
    return floors


def draw(arrows: Arrows, floors: dict[str, int], out: Path) -> None:
    """Write the picture: a box for each room, a line for each arrow."""
    rows = {floor: sorted(room for room in floors if floors[room] == floor) for floor in set(floors.values())}
    width = max(len(row) for row in rows.values())
    places = {
        room: (width * (number + 0.5) / len(row), floor)
        for floor, row in rows.items()
        for number, room in enumerate(row)
    }
    figure = Figure(figsize=(1.5 * width + 1, 1.1 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for room, targets in arrows.items():
        for target in targets:
            axes.plot(*zip(places[room], places[target], strict=True), color="0.75", linewidth=0.7, zorder=1)
    for room, (x, y) in places.items():
        axes.text(x, y, room, ha="center", va="center", bbox={"boxstyle": "round", "facecolor": "white"}, zorder=2)
    axes.set(xlim=(0, width), ylim=(0.5, len(rows) + 0.5), yticks=range(1, len(rows) + 1), ylabel="floor", xticks=[])
    figure.savefig(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    rooms = find_arrows(Path(sys.argv[1]) / "convnext_cli")
    try:
        levels = assign_floors(rooms)
    except CycleError as error:
        sys.exit(f"a circle of imports: {' -> '.join(error.args[1])}")
    draw(rooms, levels, Path(sys.argv[2]))
    print(f"{len(levels)} rooms on {max(levels.values())} floors, {sum(map(len, rooms.values()))} arrows, no circle")
