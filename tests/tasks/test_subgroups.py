import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from convnext_cli import evaluate
from convnext_cli.runs.folder import RunFolder
from tests.tasks.conftest import TASKS


@pytest.mark.parametrize("kind", TASKS)
def test_each_task_compares_subgroups_by_its_own_metrics(
    kind: str, task_run: Callable[[str], RunFolder], tmp_path: Path
) -> None:
    run = task_run(kind)
    index = run.read_split()
    with (tmp_path / "sites.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "site"])
        writer.writerows([group, "AB"[place % 2]] for place, group in enumerate(sorted(set(index.groups))))
    result = evaluate(run.path, split="val", subgroups="site", subgroup_table=tmp_path / "sites.csv")
    assert result.subgroups is not None
    assert result.subgroups.clustered
    [site] = result.subgroups.groupings
    for subgroup in site.subgroups:
        assert tuple(metric.key for metric in subgroup.metrics) == result.task.display.subgroups
        assert all(metric.estimate.value is not None for metric in subgroup.metrics)
        assert all(metric.p_holm is not None or not metric.gap.value for metric in subgroup.metrics)
    assert sum(subgroup.groups for subgroup in site.subgroups) == result.intervals.units
