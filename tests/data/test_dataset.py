from pathlib import Path

from convnext_cli.data.dataset import DatasetRequest, load_dataset
from convnext_cli.progress import finish
from tests.conftest import save_image


def test_a_training_is_not_told_what_a_centre_crop_would_not_see(tmp_path: Path) -> None:
    for name in ("wide", "square"):
        for number in range(12):
            save_image(tmp_path / f"{name}/{number}.png", size=(64 if name == "wide" else 16, 16), seed=number)
    dataset = finish(load_dataset(DatasetRequest(data=tmp_path, audit=True)))
    assert dataset.audit is not None
    assert any("centre crop never sees" in finding.title for finding in dataset.audit.findings)
    assert not any("centre crop" in notice.text for notice in dataset.list_notices())
