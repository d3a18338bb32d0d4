"""The run folder: every file in it is named, written and read here (the model's own two by `models.build`)."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_cli.data.scan import Index
from convnext_cli.errors import RunError, UsageError
from convnext_cli.files import add_line, read_lines, replace_file, sum_file, write_text
from convnext_cli.text import quote

if TYPE_CHECKING:
    from numpy.typing import NDArray  # for its name only: `recommend` answers without NumPy

RUNS = Path("runs")
_SPLITS = re.compile(r"train|val|test|fold-\d+")
_RANGE_TEST, _CALIBRATION, _ARRAYS = "lr.json", "calibration.json", "calibration.safetensors"
FOLDS_PLAN = "folds.toml"  # marks the folder of a cross-validation, see `folds.py`
_SPLIT_COLUMNS = ("path", "label", "group", "split")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @property
    def plan(self) -> Path:
        """Resolved settings with their reasons; feeding it back repeats the run."""
        return self.path / "plan.toml"

    def checkpoint(self, step: int) -> Path:
        """Everything needed to continue after `step` optimizer steps: model, optimizer, progress."""
        return self.path / "last" / f"step-{step:08}.safetensors"

    def list_checkpoints(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return sorted(self.path.glob("last/step-*.safetensors"), key=lambda path: (len(path.name), path.name))[::-1]

    def drop_checkpoints(self, *, keep: int) -> None:
        """Removes all but the newest checkpoints."""
        for old in self.list_checkpoints()[keep:]:
            old.unlink(missing_ok=True)

    def candidate(self, epoch: int) -> Path:
        """An epoch's weights, kept until the best ones are averaged."""
        return self.path / "last" / f"epoch-{epoch:04}.safetensors"

    def list_candidates(self) -> list[Path]:
        """All that `candidate` names and that is there."""
        return list(self.path.glob("last/epoch-*.safetensors"))

    @property
    def metrics(self) -> Path:
        """The final figures."""
        return self.path / "metrics.json"

    @property
    def is_begun(self) -> bool:
        """Whether it can be continued: the plan is written after all else that a beginning needs."""
        return self.plan.exists()

    @property
    def is_finished(self) -> bool:
        """Whether it has come to its end: the final figures are written after all else."""
        return self.metrics.exists()

    @property
    def is_run(self) -> bool:
        """Whether `finetune` has been here."""
        return any((self.path / name).exists() for name in ("plan.toml", "config.json", FOLDS_PLAN))

    @property
    def report(self) -> Path:
        """The newest evaluation, for people."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """Folder of the report's plots, as pictures of their own."""
        return self.path / "plots"

    @property
    def curves(self) -> Path:
        """Picture of the training so far."""
        return self.path / "curves.png"

    @property
    def range_test(self) -> Path:
        """Picture of the learning-rate range test; its numbers are beside it."""
        return self.path / "lr.png"

    def exported(self, format: str, *, int8: bool = False) -> Path:
        """The model for elsewhere, `onnx` or `pt2`; by the first, in full precision, `predict` does without torch."""
        return self.path / f"model{'-int8' if int8 else ''}.{format}"

    @property
    def tests(self) -> Path:
        """One line for each time that the run was evaluated on a test split."""
        return self.path / "tests.jsonl"

    def create(self, *, overwrite: bool) -> None:
        """Makes the folder, which must be new, empty, or a former run that `overwrite` allows to be replaced."""
        self.check_free(overwrite=overwrite)
        try:
            (self.path / "last").mkdir(parents=True, exist_ok=True)
            for old in self._files():
                old.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}", "Choose another --output") from error

    def drop_temporary(self) -> None:
        """Removes what a killed process was writing."""
        for path in self._temporary():
            path.unlink(missing_ok=True)

    def check_free(self, *, overwrite: bool) -> None:
        """Checks that a new run may be written here.

        Raises:
            UsageError: something is there already.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"{self.path} is a file", "Choose another --output")
        if self.is_begun and not self.is_finished and not overwrite:
            raise UsageError(
                f"{self.path} exists already, a run that has not finished",
                f"Continue it with `convnext finetune --resume {quote(self.path)}`, choose another "
                "--output, or add --overwrite",
            )
        if any(self.path.iterdir()) and not (overwrite and self.is_begun) and not self._is_false_start():
            remedy = "Choose another --output" + (", or add --overwrite" if self.is_begun else "")
            raise UsageError(f"{self.path} exists already", remedy)

    def write_plan(self, toml: str) -> None:
        """Writes the plan."""
        write_text(self.plan, toml)

    def write_split(self, index: Index) -> None:
        """Writes which image went where, and the folder that the paths start from."""
        text = io.StringIO()
        table = csv.writer(text)  # with its own line ends, for which it quotes both of their characters in a name
        table.writerow(_SPLIT_COLUMNS)
        groups = index.groups or ("",) * len(index)
        for path, label, group, split in zip(index.paths, index.labels, groups, index.splits, strict=True):
            table.writerow((path, index.classes[label], group, split))
        about = {"data": str(index.root.absolute()), "classes": list(index.classes), "skipped": index.skipped}
        write_text(self.path / "split.csv", text.getvalue())
        write_text(self.path / "data.json", json.dumps(about, indent=1) + "\n")

    def read_split(self) -> Index:
        """Reads the index back, as `write_split` was given it.

        Raises:
            RunError: a file is missing or damaged.
        """
        remedy = "Give a folder that `convnext finetune` made"
        try:
            about = json.loads((self.path / "data.json").read_text(encoding="utf-8", errors="surrogateescape"))
            with (self.path / "split.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                rows = list(csv.DictReader(file))
            if not rows or any(row.get(key) is None for row in rows for key in _SPLIT_COLUMNS):
                raise ValueError(f"it must have rows of {', '.join(_SPLIT_COLUMNS)}")
            if strange := {row["split"] for row in rows if not _SPLITS.fullmatch(row["split"])}:
                raise ValueError(f"no such split: {', '.join(sorted(strange))}")
            number = {name: label for label, name in enumerate(about["classes"])}
            groups = tuple(row["group"] for row in rows)
            return Index(
                root=Path(about["data"]),
                classes=tuple(about["classes"]),
                paths=tuple(row["path"] for row in rows),
                labels=tuple(number[row["label"]] for row in rows),
                splits=tuple(row["split"] for row in rows),
                groups=groups if any(groups) else (),
                skipped=about["skipped"],
            )
        except FileNotFoundError as error:
            raise RunError(f"{self.path} is no run: it has no {Path(error.filename).name}", remedy) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"the split of {self.path} cannot be read ({error!r})", remedy) from error

    def write_audit(self, audit: dict[str, Any]) -> None:
        """Writes what was found in the data."""
        write_text(self.path / "audit.json", json.dumps(audit, indent=1, default=str) + "\n")

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Writes versions, device and command line."""
        write_text(self.path / "environment.json", json.dumps(environment, indent=1) + "\n")

    def write_range_test(self, found: dict[str, Any]) -> None:
        """Writes the numbers of the learning-rate range test."""
        write_text(self.path / _RANGE_TEST, json.dumps(found, indent=1) + "\n")

    def read_range_test(self) -> dict[str, Any] | None:
        """What `write_range_test` was given; None where there was no such test."""
        return self.read_json(_RANGE_TEST)

    def write_log(self, epochs: list[dict[str, Any]]) -> None:
        """Writes one line per epoch, all of them anew, so that a kill leaves no half line."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes the final figures."""
        write_text(self.metrics, json.dumps(metrics, indent=1) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The epochs so far, as `write_log` was given them; none where there is no log."""
        return read_lines(self.path / "metrics.jsonl")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """One of the run's JSON files, or None where it is missing or damaged: what is nice to know and no more."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8", errors="surrogateescape"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write_calibration(self, found: dict[str, Any], arrays: "dict[str, NDArray[Any]]") -> None:
        """Writes what was found on the validation split, and the arrays that it came from."""
        from safetensors.numpy import save  # and not its own writer, whose error on a full disk is no OSError

        with replace_file(self.path / _ARRAYS) as temporary:
            temporary.write_bytes(save(arrays))
        write_text(self.path / _CALIBRATION, json.dumps(found, indent=1) + "\n")

    def read_calibration(self) -> dict[str, Any] | None:
        """What `write_calibration` was given, or None.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / _CALIBRATION
        if path.exists() and self.read_json(_CALIBRATION) is None:
            raise RunError(f"{path} cannot be read", "Delete it; `convnext eval` fits it again")
        return self.read_json(_CALIBRATION)

    def read_calibration_arrays(self) -> "dict[str, NDArray[Any]]":
        """The arrays that `write_calibration` was given.

        Raises:
            RunError: they are missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(self.path / _ARRAYS))
        except (OSError, SafetensorError) as error:
            remedy = f"Delete {_CALIBRATION} there; `convnext eval` fits both again"
            raise RunError(f"{self.path / _ARRAYS} cannot be read ({error})", remedy) from error

    def fingerprint_weights(self) -> str:
        """A short sum over the weights, by which is known what was fitted for others."""
        try:
            return f"{sum_file(self.path / 'model.safetensors'):08x}"
        except OSError as error:
            raise RunError(f"{self.path} has no weights that can be read", "Give a finished run") from error

    def record_test(self, entry: dict[str, Any]) -> int:
        """Adds an evaluation on a test split and returns the how-manieth it is.

        Raises:
            RunError: it cannot be written; an evaluation that leaves no trace would make the test look fresh.
        """
        try:
            add_line(self.tests, entry)
        except OSError as error:
            remedy = "Make the run writable: each evaluation on the test split is recorded there"
            raise RunError(f"cannot write {self.tests}: {error.strerror}", remedy) from error
        return len(read_lines(self.tests))

    def read_tests(self) -> list[dict[str, Any]]:
        """Return the evaluations on a test split, oldest first, as `record_test` was given them."""
        return read_lines(self.tests)

    def _files(self) -> Iterator[Path]:
        """All files of a run. Removed in this order, what is left at any moment can be replaced or begun anew."""
        yield from (self.metrics, self.report, self.curves, self.tests, self.path / _ARRAYS, self.path / _CALIBRATION)
        yield from (self.range_test, *self.plots.glob("*.png"), *self.list_candidates())
        yield from (self.exported("onnx"), self.exported("onnx", int8=True), self.exported("pt2"))
        yield from (self.path / name for name in ("model.safetensors", "config.json", "metrics.jsonl", "plan.toml"))
        yield from self._beginnings()

    def _beginnings(self) -> Iterator[Path]:
        """What is written before the plan, and what a killed process was writing."""
        names = ("split.csv", "data.json", "audit.json", "environment.json", _RANGE_TEST)
        yield from (*(self.path / name for name in names), *self.list_checkpoints())
        yield from self._temporary()

    def _temporary(self) -> list[Path]:
        return [*self.path.glob(".*.tmp"), *self.path.glob("last/.*.tmp")]

    def _is_false_start(self) -> bool:
        """Whether all that is here is what a run leaves that was killed before it had begun."""
        last = self.path / "last"
        return last.is_dir() and not set(self.path.rglob("*")) - {last, *self._beginnings()}
