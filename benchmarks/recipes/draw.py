"""Print the tables and draw the plot of the results of `measure.py`.

    python -m benchmarks.recipes.draw OUT/results.json... [--half report] [--picture FILE.png] [--class VIRUS]

The table has the balanced accuracy in percent, mean and standard deviation over the seeds, by data set, and the mean
rank over the data sets (by the means, 1 is the best) of variants with all seeds. Variants with fewer seeds have (the
difference) to the first variant on the same seeds. Time is the ratio of processor times to the first variant's, on the
same data set and seed. The plot has the differences to the first variant: a point per seed, and a bar for their mean.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Results = dict[str, dict[str, dict[int, dict[str, Any]]]]
"""Runs by variant, data set and seed."""


def arrange(results: list[dict[str, Any]]) -> Results:
    """Return the runs by variant, data set and seed."""
    found: Results = defaultdict(lambda: defaultdict(dict))
    for result in results:
        found[result["variant"]][result["set"]][result["seed"]] = result
    return found


def find_scores(runs: dict[int, dict[str, Any]]) -> NDArray[np.float64]:
    """Return the balanced accuracies in percent, by seed."""
    return np.array([100 * runs[seed]["balanced_accuracy"] for seed in sorted(runs)])


def rank(found: Results, sets: list[str]) -> dict[str, float]:
    """Return a variant's mean rank over the data sets, among the variants with all seeds and data sets."""
    first = next(iter(found))
    whole = [v for v in found if all(found[v].get(name, {}).keys() == found[first][name].keys() for name in sets)]
    ranks: dict[str, list[int]] = {variant: [] for variant in whole}
    for name in sets:
        means = {variant: find_scores(found[variant][name]).mean() for variant in whole}
        for variant in whole:
            ranks[variant].append(1 + sum(means[other] > means[variant] for other in whole))
    return {variant: float(np.mean(ranks[variant])) for variant in whole}


def find_cost(found: Results, variant: str, first: str) -> float:
    """Return the ratio of the processor time to the first variant's, geometric mean over data sets and seeds."""
    logs = [
        np.log(run["processor_seconds"] / found[first][name][seed]["processor_seconds"])
        for name, runs in found[variant].items()
        for seed, run in runs.items()
        if seed in found[first].get(name, {})
    ]
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def show_class(found: Results, label: str) -> None:
    """Print a class's recall and ROC AUC, the others' mean recall, and the 95% CI of the first balanced accuracy."""
    print(
        f"{'variant':<26}{'recall of ' + label:>18}{'ROC AUC':>14}{'recall of others':>18}"
        f"{'balanced accuracy':>19}   (first seed: 95%)"
    )
    for variant, sets in found.items():
        for runs in sets.values():
            own, area = (100 * np.array([run[key][label] for run in runs.values()]) for key in ("recall", "roc_auc"))
            others = 100 * np.array(
                [np.mean([value for name, value in run["recall"].items() if name != label]) for run in runs.values()]
            )
            scores, (low, high) = find_scores(runs), runs[min(runs)]["interval"]
            cells = [
                f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else " " * 6)
                for values in (own, area, others, scores)
            ]
            row = f"{variant:<26}{cells[0]:>18}{cells[1]:>14}{cells[2]:>18}{cells[3]:>19}"
            print(f"{row}   {100 * low:.1f} to {100 * high:.1f}")


def show(found: Results) -> None:
    """Print the table, ordered by mean rank."""
    first = next(iter(found))
    sets = list(found[first])
    ranks = rank(found, sets)
    wide = max(map(len, found)) + 2
    print(f"{'variant':<{wide}}" + "".join(f"{name:>14}" for name in sets) + f"{'mean':>7}{'rank':>6}{'time':>6}")
    for variant in sorted(found, key=lambda variant: ranks.get(variant, np.inf)):
        cells, means = "", []
        for name in sets:
            runs, same = found[variant].get(name, {}), found[first][name]
            scores = find_scores(runs)
            means += [scores.mean()] if len(scores) else []
            if runs.keys() == same.keys():
                spread = f"{scores.std(ddof=1):.1f}" if len(scores) > 1 else "-"
                cells += f"{f'{scores.mean():.1f} ± {spread}':>14}"
            else:  # fewer seeds: only the difference on the same ones says something
                gap = (scores - find_scores({seed: same[seed] for seed in runs})).mean() if runs else np.nan
                cells += f"{f'({gap:+.1f})' if runs else '-':>14}"
        place = f"{ranks[variant]:.1f}" if variant in ranks else "-"
        mean = f"{np.mean(means):.1f}" if variant in ranks else "-"
        print(f"{variant:<{wide}}{cells}{mean:>7}{place:>6}{find_cost(found, variant, first):>6.2f}")
    example = found[first]
    print("n of seeds: " + ", ".join(f"{name} {len(example[name])}" for name in sets))
    for name in sets:
        run = next(iter(example[name].values()))
        print(
            f"{name}: {run['train']} to train, {run['test']} to test, {run['classes']} classes, {run['epochs']} epochs"
        )


def draw(found: Results, path: Path) -> None:
    """Draw the differences to the first variant."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    first = next(iter(found))
    others = [variant for variant in found if variant != first][::-1]
    sets = list(found[first])
    figure, axes = plt.subplots(figsize=(8, 1 + 0.45 * len(others)), layout="constrained")
    for at, variant in enumerate(others):
        for number, name in enumerate(sets):
            runs, own = found[variant].get(name, {}), found[first][name]
            gaps = [100 * (runs[s]["balanced_accuracy"] - own[s]["balanced_accuracy"]) for s in runs if s in own]
            place = at + 0.3 - 0.6 * number / max(1, len(sets) - 1)
            if gaps:
                axes.plot(gaps, [place] * len(gaps), ".", color=f"C{number}", alpha=0.6)
                axes.plot(
                    [np.mean(gaps)], [place], "|", color=f"C{number}", markersize=9, label=name if not at else None
                )
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(others)), others)
    axes.set_xlabel(f"balanced accuracy minus that of {first!r}, points")
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--class", dest="label", help="a class to tell the recall and the ROC AUC of")
    options = parser.parse_args()
    results = [run for path in options.results for run in json.loads(path.read_text(encoding="utf-8"))]
    found = arrange([result for result in results if result["half"] == options.half])
    show(found)
    if options.label:
        show_class(found, options.label)
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
