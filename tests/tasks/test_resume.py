"""A killed training of several labels resumes to the same bytes."""

from pathlib import Path

import pytest

from tools.kill_test import SETTINGS, compare


@pytest.mark.slow
def test_run_of_several_labels_killed_at_random_moments_ends_in_the_same_bytes(
    tables: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = f"{SETTINGS} --ema-decay 0.9 --uncertain smooth".replace("--epochs 6", "--epochs 3")
    assert compare(tables["multilabel"], kills=5, processes=1, seed=24, settings=settings).startswith("5 kills")
