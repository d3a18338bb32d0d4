"""The run folder: every file in it is named, written and read here (the model's own two by `models.build`)."""

import csv
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convnext_cli.data.index import Index
from convnext_cli.errors import ConvnextError, RunError, UsageError
from convnext_cli.files import add_line, read_lines, replace_file, sum_file, write_text
from convnext_cli.locks import LOCK
from convnext_cli.text import quote

if TYPE_CHECKING:
    from numpy.typing import NDArray  # for its name only: `recommend` answers without NumPy

    from convnext_cli.runs.records import AuditRecord, Config, Data, Environment, Result

Kind = TypeVar("Kind")
RUNS = Path("runs")
_SPLITS = re.compile(r"train|val|test|fold-\d+")
_RANGE_TEST, _CALIBRATION, _ARRAYS = "lr.json", "calibration.json", "calibration.safetensors"
MODEL_REMEDY = "Give a folder that `convnext finetune` made and finished an epoch in"
CALIBRATION_REMEDY = "Delete it; `convnext eval` fits it again"
_ORIGIN = "last/origin.safetensors"
_IMAGE_HASHES = "image_hashes.safetensors"
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

    def write_origin(self, arrays: "dict[str, NDArray[Any]]") -> None:
        """Write the digests of the split's rows and of the images' bytes.

        Raises:
            ConvnextError: the disk is full, read-only or gone.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        path = self.path / _ORIGIN
        try:
            with replace_file(path) as temporary:
                save_file(arrays, temporary)
        except (SafetensorError, OSError) as error:
            raise ConvnextError(f"cannot write {path} ({error})", "Check the disk's space and permissions") from error

    def read_origin(self) -> "dict[str, NDArray[Any]]":
        """Return the arrays that `write_origin` was given; none where the file is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(self.path / _ORIGIN))
        except (OSError, SafetensorError):
            return {}

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
        if (
            any(path.name != LOCK for path in self.path.iterdir())
            and not (overwrite and self.is_begun)
            and not self._is_false_start()
        ):
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
        from convnext_cli.runs.records import read_text

        remedy = "Give a folder that `convnext finetune` made"
        table = self.path / "split.csv"
        try:
            about = self.read_data()
            text = read_text(table, remedy)
        except FileNotFoundError as error:
            missing = f"is no run: it has no {Path(error.filename).name}" if self.path.exists() else "does not exist"
            raise RunError(f"{self.path} {missing}", remedy) from error
        number = {name: label for label, name in enumerate(about.classes)}
        paths, labels, groups, splits = [], [], [], []
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                if problem := _find_split_problem(row, number):
                    raise RunError(f"{table} cannot be read: line {reader.line_num}: {problem}", remedy)
                paths.append(row["path"])
                labels.append(number[row["label"]])
                groups.append(row["group"])
                splits.append(row["split"])
        except csv.Error as error:
            raise RunError(f"{table} cannot be read: line {reader.line_num}: {error}", remedy) from error
        if not paths:
            raise RunError(f"{table} cannot be read: it has no rows of {', '.join(_SPLIT_COLUMNS)}", remedy)
        return Index(
            root=Path(about.data),
            classes=about.classes,
            paths=tuple(paths),
            labels=tuple(labels),
            splits=tuple(splits),
            groups=tuple(groups) if any(groups) else (),
            skipped=about.skipped,
        )

    def read_data(self) -> "Data":
        """Read where the images are, and the classes in the order of the model's outputs.

        Raises:
            FileNotFoundError: there is no such file.
            RunError: it does not fit its schema.
        """
        from convnext_cli.runs.records import Data, read_record  # here and below: `recommend` answers without it

        remedy = "Give a folder that `convnext finetune` made"
        about = read_record(self.path / "data.json", Data, remedy)
        if twice := sorted(name for name, count in Counter(about.classes).items() if count > 1):
            raise RunError(f"{self.path / 'data.json'} cannot be read: classes: {twice[0]!r} stands twice", remedy)
        return about

    def read_config(self) -> "Config":
        """Read the model's configuration: its architecture, classes and preprocessing.

        Raises:
            RunError: it is missing, does not fit its schema, or its classes are not those of the data.
        """
        from convnext_cli.runs.records import Config, read_record

        path = self.path / "config.json"
        try:
            config = read_record(path, Config, MODEL_REMEDY)
        except FileNotFoundError as error:
            raise RunError(f"{self.path} is no finished run: it has no {path.name}", MODEL_REMEDY) from error
        names = config.label_names
        if len(set(names)) != len(names) or config.num_classes not in (None, len(names)):
            problem = f"{len(set(names))} class names for {config.num_classes or len(names)} outputs"
            raise RunError(f"{path} cannot be read: label_names: {problem}", MODEL_REMEDY)
        preprocessing = config.pretrained_cfg
        channels, height, width = preprocessing.input_size
        if height != width:
            raise RunError(f"{path} cannot be read: input_size: {height} x {width} px is not square", MODEL_REMEDY)
        means, deviations, inputs = len(preprocessing.mean), len(preprocessing.std), config.model_args.in_chans
        if {means, deviations} not in ({1}, {3}) or channels != inputs:
            problem = f"{means} means, {deviations} deviations and {inputs} channels"
            raise RunError(f"{path} cannot be read: pretrained_cfg: {problem} for {channels} channels", MODEL_REMEDY)
        if (self.path / "data.json").exists() and self.read_data().classes != names:
            raise RunError(f"the classes in {path} are not those of data.json beside it", MODEL_REMEDY)
        return config

    def read_result(self) -> "Result | None":
        """Read the epoch that was kept, and its metrics on validation; None before the run has finished.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import Result

        return self._read_if_there(self.metrics, Result, "Delete it, and `convnext finetune --resume` writes it again")

    def read_audit(self) -> "AuditRecord | None":
        """Read what was found in the data; None where the audit was switched off.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import AuditRecord

        return self._read_if_there(self.path / "audit.json", AuditRecord, "`convnext check` looks at the data again")

    def read_environment(self) -> "Environment | None":
        """Read versions, device and command line.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import Environment

        return self._read_if_there(self.path / "environment.json", Environment, "Bring the former file back")

    def _read_if_there(self, path: Path, kind: "type[Kind]", remedy: str) -> "Kind | None":
        from convnext_cli.runs.records import read_record

        try:
            return read_record(path, kind, remedy)
        except FileNotFoundError:
            return None

    def write_audit(self, audit: dict[str, Any]) -> None:
        """Writes what was found in the data."""
        write_text(self.path / "audit.json", json.dumps(audit, indent=1, default=str) + "\n")

    def copy_audit(self, other: "RunFolder") -> None:
        """Copy another run's audit of the same data, as it is; a damaged one stays one that is seen to be damaged."""
        if (path := other.path / "audit.json").is_file():
            with replace_file(self.path / "audit.json") as temporary:
                shutil.copyfile(path, temporary)

    def write_image_hashes(self, pictures: "dict[str, NDArray[Any]]") -> None:
        """Write a digest, a perceptual hash and a thumbnail of 12 x 12 px of each row of the split."""
        from safetensors.numpy import save_file

        with replace_file(self.path / _IMAGE_HASHES) as temporary:
            save_file(pictures, temporary)

    def read_image_hashes(self) -> "dict[str, NDArray[Any]] | None":
        """Return what `write_image_hashes` was given; None where the run has none, or it is damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(self.path / _IMAGE_HASHES))
        except (OSError, SafetensorError):
            return None

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Writes versions, device and command line."""
        write_text(self.path / "environment.json", json.dumps(environment, indent=1) + "\n")

    def write_range_test(self, found: dict[str, Any]) -> None:
        """Writes the numbers of the learning-rate range test."""
        write_text(self.path / _RANGE_TEST, json.dumps(found, indent=1) + "\n")

    def read_range_test(self) -> dict[str, Any] | None:
        """Read what `write_range_test` was given; None where there was no such test.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import RangeTest, convert_record, read_json

        path, remedy = self.path / _RANGE_TEST, f"Delete it: {_RANGE_TEST} is only for the plot"
        try:
            raw: dict[str, Any] = read_json(path, remedy, nan_is_none=True)
        except FileNotFoundError:
            return None
        convert_record(raw, RangeTest, path, remedy)
        return raw

    def write_log(self, epochs: list[dict[str, Any]]) -> None:
        """Writes one line per epoch, all of them anew, so that a kill leaves no half line."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes the final figures."""
        write_text(self.metrics, json.dumps(metrics, indent=1) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """Read the epochs so far, as `write_log` was given them; none where there is no log.

        Raises:
            RunError: a line does not fit its schema.
        """
        from convnext_cli.runs.records import Epoch, convert_record, parse_json, read_text

        path, remedy = self.path / "metrics.jsonl", "Delete it: it is only for the plots"
        try:
            lines = read_text(path, remedy).splitlines()
        except FileNotFoundError:
            return []
        epochs = []
        for number, line in enumerate(lines, start=1):
            epoch = parse_json(line, f"{path}, line {number},", remedy, nan_is_none=True)
            convert_record(epoch, Epoch, f"{path}, line {number},", remedy)
            epochs.append(epoch)
        return epochs

    def write_calibration(self, found: dict[str, Any], arrays: "dict[str, NDArray[Any]]") -> None:
        """Writes what was found on the validation split, and the arrays that it came from."""
        from safetensors.numpy import save  # and not its own writer, whose error on a full disk is no OSError

        with replace_file(self.path / _ARRAYS) as temporary:
            temporary.write_bytes(save(arrays, metadata={"weights": found["weights"]}))
        write_text(self.path / _CALIBRATION, json.dumps(found, indent=1) + "\n")

    def read_calibration(self) -> Any:
        """Read what `write_calibration` was given, as plain values; None where there is none.

        Raises:
            RunError: the file is no JSON.
        """
        from convnext_cli.runs.records import read_json

        try:
            return read_json(self.path / _CALIBRATION, CALIBRATION_REMEDY)
        except FileNotFoundError:
            return None

    def read_calibration_arrays(self) -> "dict[str, NDArray[Any]]":
        """The arrays that `write_calibration` was given.

        Raises:
            RunError: they are missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path, remedy = self.path / _ARRAYS, f"Delete {_CALIBRATION} there; `convnext eval` fits both again"
        try:
            with safe_open(path, "np") as file:
                weights = (file.metadata() or {}).get("weights")  # runs of former versions have none
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, SafetensorError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error})", remedy) from error
        if weights not in (None, self.fingerprint_weights()):
            raise RunError(f"{path} cannot be read: it was fitted for other weights ({weights})", remedy)
        return arrays

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
        # A damaged line is a former evaluation too.
        return sum(bool(line.strip()) for line in self.tests.read_bytes().splitlines())

    def read_tests(self) -> list[dict[str, Any]]:
        """Return the evaluations on a test split, oldest first, as `record_test` was given them.

        A line that a full disk cut short is passed over.

        Raises:
            RunError: a line does not fit its schema.
        """
        from convnext_cli.runs.records import Test, convert_record

        remedy = "Correct the line; each evaluation on the test split is recorded there"
        tests = read_lines(self.tests)
        for number, entry in enumerate(tests, start=1):
            convert_record(entry, Test, f"{self.tests}, evaluation {number},", remedy)
        return tests

    def _files(self) -> Iterator[Path]:
        """All files of a run. Removed in this order, what is left at any moment can be replaced or begun anew."""
        yield from (self.metrics, self.report, self.curves, self.tests, self.path / _ARRAYS, self.path / _CALIBRATION)
        yield from (self.range_test, *self.plots.glob("*.png"), *self.list_candidates())
        yield from (self.exported("onnx"), self.exported("onnx", int8=True), self.exported("pt2"))
        yield from (self.path / name for name in ("model.safetensors", "config.json", "metrics.jsonl", "plan.toml"))
        yield from self._beginnings()

    def _beginnings(self) -> Iterator[Path]:
        """What is written before the plan, and what a killed process was writing."""
        names = ("split.csv", "data.json", "audit.json", "environment.json", _RANGE_TEST, _ORIGIN, _IMAGE_HASHES)
        yield from (*(self.path / name for name in names), *self.list_checkpoints())
        yield from self._temporary()

    def _temporary(self) -> list[Path]:
        """What a killed process was writing: `replace_file` ends names in `.tmp`, safetensors begins them so."""
        return [
            path for pattern in (".*.tmp", ".tmp*", "last/.*.tmp", "last/.tmp*") for path in self.path.glob(pattern)
        ]

    def _is_false_start(self) -> bool:
        """Whether all that is here is what a run leaves that was killed before it had begun."""
        last = self.path / "last"
        return last.is_dir() and not set(self.path.rglob("*")) - {last, self.path / LOCK, *self._beginnings()}


def _find_split_problem(row: Mapping[str | None, Any], classes: Mapping[str, int]) -> str | None:
    """Say what is wrong with a row of `split.csv`."""
    if missing := [key for key in _SPLIT_COLUMNS if row.get(key) is None]:
        return f"no {', '.join(missing)}; it must have rows of {', '.join(_SPLIT_COLUMNS)}"
    if not row["path"] or "\0" in row["path"]:
        return f"path: {row['path']!r} is no path"
    if row["label"] not in classes:
        return f"label: data.json has no class {row['label']!r}"
    return None if _SPLITS.fullmatch(row["split"]) else f"split: no such split {row['split']!r}"
