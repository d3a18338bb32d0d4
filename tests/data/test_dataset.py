from pathlib import Path

from convnext_cli.data.dataset import DatasetRequest, load_dataset
from convnext_cli.progress import finish
from tests.conftest import save_image


def test_groups_of_unreadable_images_are_not_counted(tmp_path: Path) -> None:
    for name in "ab":
        for number in range(12):
            save_image(tmp_path / f"{name}/p{number // 2}_{name}_{number}.png", seed=number)
    (tmp_path / "a/p99_a_1.png").write_bytes(b"torn")
    dataset = finish(load_dataset(DatasetRequest(data=tmp_path, audit=True, group_from=r"p\d+_[ab]")))
    assert dataset.grouping.groups == len(set(dataset.index.groups)) == 12
    assert any(notice.text.startswith("12 groups (patients?)") for notice in dataset.list_notices())


def test_a_training_is_not_told_what_a_centre_crop_would_not_see(tmp_path: Path) -> None:
    for name in ("wide", "square"):
        for number in range(12):
            save_image(tmp_path / f"{name}/{number}.png", size=(64 if name == "wide" else 16, 16), seed=number)
    dataset = finish(load_dataset(DatasetRequest(data=tmp_path, audit=True)))
    assert dataset.audit is not None
    assert any("centre crop never sees" in finding.title for finding in dataset.audit.findings)
    assert not any("centre crop" in notice.text for notice in dataset.list_notices())
