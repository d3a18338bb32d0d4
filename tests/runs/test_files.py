from pathlib import Path

from convnext_cli.inference import calibration
from convnext_cli.runs import records
from convnext_cli.runs.files import (
    FOLDS_PLAN,
    METRICS,
    PLAN,
    RUN_FILES,
    list_beginning,
    list_removable,
)
from convnext_cli.runs.folder import RunFolder


def test_finished_run_has_declared_files_only(run: RunFolder) -> None:
    files = {path for path in run.path.rglob("*") if path.is_file()}
    declared = {path for file in RUN_FILES for path in file.find(run.path)}
    assert files == declared
    assert set(list_removable(run.path)) == files


def test_schemas_exist() -> None:
    for file in RUN_FILES:
        assert file.schema is None or any(hasattr(module, file.schema) for module in (records, calibration)), file


def test_each_schema_has_a_remedy() -> None:
    assert [file.name for file in RUN_FILES if file.schema and not file.remedy] == []


def test_files_are_removed_in_an_order_that_can_be_repeated(tmp_path: Path) -> None:
    for file in RUN_FILES:
        path = file.path(tmp_path, "1")
        path.parent.mkdir(exist_ok=True)
        path.touch()
    order = [str(path.relative_to(tmp_path)) for path in list_removable(tmp_path)]
    assert len(order) == len(RUN_FILES)
    assert order[0] == METRICS.name, "without it the run counts as unfinished"
    beginning = {str(path.relative_to(tmp_path)) for path in list_beginning(tmp_path)}
    assert set(order[order.index(PLAN.name) + 1 :]) == beginning, "without the plan only a beginning is left"


def test_each_file_is_declared_once() -> None:
    declared = (*RUN_FILES, FOLDS_PLAN)
    names = {file.name for file in declared}
    assert len(names) == len(declared)
    assert {"plan.toml", "metrics.json", "folds.toml", "last/step-*.safetensors"} <= names
    assert all(file.content and file.writer for file in declared)
