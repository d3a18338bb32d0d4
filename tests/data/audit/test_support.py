from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convnext_cli.data.audit.measurements import Measurements, measure_images
from convnext_cli.data.audit.support import LEVEL, Support, measure_support
from convnext_cli.data.index import Index
from convnext_cli.data.sources import scan_data
from convnext_cli.progress import finish
from tests.conftest import draw_relative
from tests.data.audit.planting import audit


def draw(root: Path, paths: list[str], families: list[int]) -> None:
    for number, (path, family) in enumerate(zip(paths, families, strict=True)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        draw_relative(family, number, (32, 32)).save(root / path)


def list_slides(per_cell: int = 3) -> list[str]:
    """Return paths of blood cells whose slides are numbered anew in each class and split."""
    return [
        f"{split}/{label}/_{slide}_{100 * slide + i}.png"
        for split in ("train", "test")
        for label in ("EOS", "LYM")
        for slide in range(12)
        for i in range(per_cell)
    ]


def test_numbers_that_restart_in_each_class_are_not_groups(tmp_path: Path) -> None:
    paths = list_slides()
    draw(tmp_path, paths, list(range(1000, 1000 + len(paths))))  # no two images are alike
    result = audit(tmp_path)
    assert result.grouping.source == "none"
    assert "restart in each class" in result.grouping.rule
    assert result.index.groups == ()
    assert not result.falsifies


def test_numbers_that_restart_keep_images_of_one_class_and_split_together(tmp_path: Path) -> None:
    """Each slide has one image in each class and split, and two slides have three in one: too few to test."""
    paths = [*list_slides(1), *(f"train/EOS/_{slide}_{900 + 2 * slide + i}.png" for slide in (3, 4) for i in (0, 1))]
    draw(tmp_path, paths, list(range(1000, 1000 + len(paths))))
    result = audit(tmp_path)
    assert "so only images of one class and split are together" in result.grouping.rule
    counts = Counter(result.index.groups)
    shared = {group: count for group, count in counts.items() if count > 1}
    assert sorted(shared.values()) == [3, 3]
    rows = [row for row, group in enumerate(result.index.groups) if group in shared]
    assert {result.index.paths[row].rpartition("/")[0] for row in rows} == {"train/EOS"}
    assert result.grouping.certainty == "unsure"


def test_a_folder_with_images_of_all_classes_is_not_cut(tmp_path: Path) -> None:
    paths = [f"photos/plot{plot}/{image}.png" for plot in range(9) for image in range(4)]
    draw(tmp_path, paths, list(range(1000, 1000 + len(paths))))
    rows = [f"{path},{'ab'[number % 2]}" for number, path in enumerate(paths)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    result = audit(tmp_path / "table.csv")
    assert sorted(Counter(result.index.groups).values()) == [4] * 9
    assert "restart" not in result.grouping.rule


def test_groups_across_splits_without_similarity_are_a_note(tmp_path: Path) -> None:
    paths = list_slides()
    cells = {cell: number for number, cell in enumerate(sorted({path.rpartition("/")[0] for path in paths}))}
    draw(tmp_path, paths, [100 * cells[p.rpartition("/")[0]] + int(p.rpartition("/")[2].split("_")[1]) for p in paths])
    result = audit(tmp_path)
    [groups] = [finding for finding in result.findings if finding.kind == "groups across splits"]
    assert result.grouping.certainty == "supported"
    assert groups.severity == "note"
    assert "no more alike than images of different groups" in groups.explanation
    assert not result.falsifies


def test_groups_across_splits_with_similarity_are_a_warning(tmp_path: Path) -> None:
    paths = list_slides()
    draw(tmp_path, paths, [int(path.rpartition("/")[2].split("_")[1]) for path in paths])
    result = audit(tmp_path)
    [groups] = [finding for finding in result.findings if finding.kind == "groups across splits"]
    assert (result.grouping.certainty, groups.severity, groups.count) == ("supported", "warning", 12)
    assert result.falsifies


@pytest.mark.parametrize(("label", "severity"), [("LYM", "note"), ("EOS", "warning")])
def test_few_groups_across_splits_are_a_warning_if_a_class_is_in_both(
    tmp_path: Path, label: str, severity: str
) -> None:
    slides = [("train", "EOS", slide) for slide in range(12)] + [("train", "LYM", slide) for slide in range(20, 32)]
    slides += [("test", "EOS", slide) for slide in range(40, 48)] + [("test", "LYM", slide) for slide in range(50, 58)]
    slides += [("test", label, slide) for slide in range(3)]  # the only ones in two splits
    paths = [
        f"{split}/{name}/_{slide}_{100 * slide + i + 5 * (split == 'test')}.png"
        for split, name, slide in slides
        for i in range(4)
    ]
    cells = {cell: number for number, cell in enumerate(sorted({path.rpartition("/")[0] for path in paths}))}
    draw(tmp_path, paths, [100 * cells[p.rpartition("/")[0]] + int(p.rpartition("/")[2].split("_")[1]) for p in paths])
    result = audit(tmp_path)
    [groups] = [finding for finding in result.findings if finding.kind == "groups across splits"]
    assert (result.grouping.certainty, groups.count) == ("supported", 3)
    assert groups.severity == severity


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, Measurements]:
    root = tmp_path_factory.mktemp("unlike")
    draw(root, [f"{'ab'[n % 2]}/{n:03}.png" for n in range(80)], list(range(80)))
    index = scan_data(root)
    return index, finish(measure_images(index))


def test_random_groups_are_supported_at_the_stated_level(unlike: tuple[Index, Measurements]) -> None:
    index, measurements = unlike
    verdicts = []
    for seed in range(60):
        numbers = np.random.default_rng(seed).permutation(len(index)) // 3
        verdicts.append(measure_support(replace(index, groups=tuple(map(str, numbers))), measurements).verdict)
    assert verdicts.count("supported") <= 3, f"level {LEVEL}: 0.6 of 60 on average"


def test_one_group_is_unclear(unlike: tuple[Index, Measurements]) -> None:
    index, measurements = unlike
    groups = ("p", "p", *map(str, range(2, len(index))))
    result = measure_support(replace(index, groups=groups), measurements)
    assert result == Support(verdict="unclear", groups=result.groups, rank=0.5)
