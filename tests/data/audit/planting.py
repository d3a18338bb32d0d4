"""A generated data set with planted faults, and the list of these."""

import random
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_cli.data.audit.summary import Audit
from convnext_cli.data.dataset import DatasetRequest, load_dataset
from convnext_cli.progress import finish
from tests.conftest import change_tones, draw_relative

CLASSES = ("leaf", "root", "stem")


def audit(data: Path, **options: object) -> Audit:
    """Return the audit of a data set."""
    dataset = finish(load_dataset(DatasetRequest(data=data, **options)))  # type: ignore[arg-type]
    assert dataset.audit is not None
    return dataset.audit


@dataclass(frozen=True, kw_only=True)
class Planted:
    """The faults that were planted: pairs of relative paths of each kind."""

    root: Path
    distinct: int
    exact: set[tuple[str, str]]
    near: set[tuple[str, str]]
    conflicts: set[tuple[str, str]]
    leaked: set[str]


def plant(
    root: Path,
    *,
    distinct: int,
    exact: int,
    encoded: int,
    resized: int,
    turned: int,
    toned: int,
    conflicts: int,
    leaked: int,
) -> Planted:
    """Write `distinct` images as `root/{train,test}/<class>/plant<group>_<number>.png` and plant faults.

    Each plant has two images of one class in one split, similar but not the same. Those of `leaked` plants lie in both
    splits.
    """
    draw = random.Random(0)
    paths: list[str] = []
    by_group: dict[int, list[int]] = defaultdict(list)
    for number in range(distinct):
        group = number // 2
        label = CLASSES[group % len(CLASSES)]
        split = "test" if group % 5 == 0 else "train"
        if group < leaked:
            split = ("train", "test")[number % 2]
        by_group[group].append(number)
        path = root / split / label / f"plant{group:05}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_relative(group, number, (64 + 8 * (number % 5), 72)).save(path, compress_level=1)
        paths.append(path.relative_to(root).as_posix())
    sources = draw.sample(paths[2 * leaked :], exact + encoded + resized + turned + toned + conflicts)
    copies: list[set[tuple[str, str]]] = [set(), set(), set()]
    for place, name in enumerate(sources):
        source, target = root / name, (root / name).with_name(f"copy{place}.png")
        with Image.open(source) as opened:
            image = opened.copy()
        if place < exact:
            shutil.copyfile(source, target)
            kind = 0
        elif place < exact + encoded:
            target = target.with_suffix(".jpg")
            image.save(target, quality=draw.choice((40, 60, 80, 95)))
            kind = 1
        elif place < exact + encoded + resized:
            factor = draw.choice((0.5, 0.7, 1.5, 2.0))
            image.resize((round(image.width * factor), round(image.height * factor))).save(target)
            kind = 1
        elif place < exact + encoded + resized + turned:
            image.transpose(draw.choice(list(Image.Transpose))).save(target)
            kind = 1
        elif place < exact + encoded + resized + turned + toned:
            change_tones(image, gain=draw.uniform(0.6, 1.4), gamma=draw.uniform(0.7, 1.4)).save(target)
            kind = 1
        else:
            split, label, _ = name.split("/")
            other = CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)]
            target = root / split / other / target.name
            Image.fromarray(np.asarray(image)).save(target)
            kind = 2
        copies[kind].add((name, target.relative_to(root).as_posix()))
    return Planted(
        root=root,
        distinct=distinct,
        exact=copies[0],
        near=copies[1],
        conflicts=copies[2],
        leaked={f"plant{group:05}" for group in range(leaked)},
    )


def score_duplicates(planted: Planted, result: Audit) -> tuple[set[tuple[str, str]], float, float]:
    """Return the detected exact pairs, the fraction of detected near pairs, and wrong duplicates per distinct image."""
    cluster = {result.index.paths[row]: number for number, rows in enumerate(result.clusters) for row in rows}

    def hits(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
        return {(one, two) for one, two in pairs if one in cluster and cluster[one] == cluster.get(two)}

    exact = planted.exact | planted.conflicts
    expected = {path for pair in exact | planted.near for path in pair}
    return hits(exact), len(hits(planted.near)) / len(planted.near), len(set(cluster) - expected) / planted.distinct
