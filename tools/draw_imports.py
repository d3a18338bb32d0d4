"""Draw the packages of a checkout by layer, with the imports between them, and print the counts.

    python tools/draw_imports.py CHECKOUT OUT.svg

A package is a folder or a module directly in `convnext_cli/`. Its layer is one above the highest package that it
imports. A pair of packages with an import, in a function too, is a line. A circular import is an error.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from matplotlib.figure import Figure

PackageImports = dict[str, set[str]]


def find_imports(root: Path) -> PackageImports:
    """Return the packages that each package imports; `root` is the folder of `convnext_cli`."""
    imports: PackageImports = {}
    for path in sorted(root.rglob("*.py")):
        package = path.relative_to(root).parts[0].removesuffix(".py")
        if package == "__init__":
            continue
        targets = imports.setdefault(package, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{root.name}."):
                targets.add(str(node.module).split(".")[1])
        targets.discard(package)
    return imports


def assign_layers(imports: PackageImports) -> dict[str, int]:
    """Return the layer of each package, from 1.

    Raises:
        CycleError: packages import each other in a circle.
    """
    layers: dict[str, int] = {}
    for package in TopologicalSorter(imports).static_order():
        layers[package] = 1 + max((layers[target] for target in imports.get(package, ())), default=0)
    return layers


def draw(imports: PackageImports, layers: dict[str, int], out: Path) -> None:
    """Write the drawing: a box for each package, a line for each import."""
    rows = {layer: sorted(name for name in layers if layers[name] == layer) for layer in set(layers.values())}
    width = max(len(row) for row in rows.values())
    places = {
        package: (width * (number + 0.5) / len(row), layer)
        for layer, row in rows.items()
        for number, package in enumerate(row)
    }
    figure = Figure(figsize=(1.5 * width + 1, 1.1 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for package, targets in imports.items():
        for target in targets:
            axes.plot(*zip(places[package], places[target], strict=True), color="0.75", linewidth=0.7, zorder=1)
    for package, (x, y) in places.items():
        axes.text(x, y, package, ha="center", va="center", bbox={"boxstyle": "round", "facecolor": "white"}, zorder=2)
    axes.set(xlim=(0, width), ylim=(0.5, len(rows) + 0.5), yticks=range(1, len(rows) + 1), ylabel="layer", xticks=[])
    figure.savefig(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    package_imports = find_imports(Path(sys.argv[1]) / "convnext_cli")
    try:
        layer_of = assign_layers(package_imports)
    except CycleError as error:
        sys.exit(f"circular import: {' -> '.join(error.args[1])}")
    draw(package_imports, layer_of, Path(sys.argv[2]))
    count = sum(map(len, package_imports.values()))
    print(f"{len(layer_of)} packages in {max(layer_of.values())} layers, {count} imports")
