"""The run folder: writes and reads its files, which `files.py` declares; the model's two are `saved_model`'s."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convnext_cli.data.index import Index
from convnext_cli.errors import ConvnextError, RunError, UsageError
from convnext_cli.files import append_json_line, checksum_file, has_no_writer, read_json_lines, replace_file, write_text
from convnext_cli.locks import LOCK
from convnext_cli.runs import files
from convnext_cli.runs.files import RunFile
from convnext_cli.runs.split import describe_data, format_split, parse_split
from convnext_cli.text import quote

if TYPE_CHECKING:
    from numpy.typing import NDArray  # for its name only: `recommend` answers without NumPy

    from convnext_cli.runs.records import Config, Data, Result

Record = TypeVar("Record")
RUNS = Path("runs")
MODEL_REMEDY = files.CONFIG.remedy
RUN_REMEDY = files.DATA.remedy
RESTART_REMEDY = "Start a new run with another --output"


def restore_remedy(item: str) -> str:
    """Return the remedy for something in a run, or its data, that was changed since it began."""
    return f"Restore {item}, or start a new run with another --output"


def resume_command(path: Path) -> str:
    """Return the command that resumes the run in a folder."""
    return f"`convnext finetune --resume {quote(path)}`"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk. `read` and `write` are for any file; those that need more have methods of their own."""

    path: Path

    @property
    def plan(self) -> Path:
        """Resolved settings with their reasons; `--config` repeats the run with it."""
        return files.PLAN.path(self.path)

    @property
    def metrics(self) -> Path:
        """Metrics of the kept weights; written last."""
        return files.METRICS.path(self.path)

    @property
    def report(self) -> Path:
        """The newest evaluation, for people."""
        return files.REPORT.path(self.path)

    @property
    def plots(self) -> Path:
        """Folder of the report's plots, as image files."""
        return files.PLOTS.path(self.path).parent

    @property
    def tests(self) -> Path:
        """One line for each evaluation on a test split."""
        return files.TESTS.path(self.path)

    def exported(self, format: str, *, int8: bool = False) -> Path:
        """Return the path of the exported model; `format` is `onnx` or `pt2`."""
        return {"onnx": files.ONNX_INT8 if int8 else files.ONNX, "pt2": files.PT2}[format].path(self.path)

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` optimizer steps."""
        return files.CHECKPOINT.path(self.path, f"{step:08}")

    def list_checkpoints(self) -> list[Path]:
        """Return the paths of the checkpoints, the newest first."""
        return sorted(files.CHECKPOINT.find(self.path), key=lambda path: (len(path.name), path.name), reverse=True)

    def candidate(self, epoch: int) -> Path:
        """Return the path of an epoch's weights, which are kept until the best epochs are averaged."""
        return files.CANDIDATE.path(self.path, f"{epoch:04}")

    def list_candidates(self) -> list[Path]:
        """Return the paths of the kept epochs' weights."""
        return list(files.CANDIDATE.find(self.path))

    @property
    def is_begun(self) -> bool:
        """True if the run can be resumed: the plan is written after all else that resuming needs."""
        return self.plan.exists()

    @property
    def is_finished(self) -> bool:
        """True if the run has finished: the metrics are written last."""
        return self.metrics.exists()

    @property
    def is_run(self) -> bool:
        """True if `finetune` has written into the folder."""
        return any(file.path(self.path).exists() for file in (files.PLAN, files.CONFIG, files.FOLDS_PLAN))

    def create(self, *, overwrite: bool) -> None:
        """Make the folder, which must be new, empty, or a run that `overwrite` allows to replace.

        Raises:
            UsageError: something else is there.
            RunError: the folder cannot be written.
        """
        self.check_free(overwrite=overwrite)
        try:
            (self.path / "last").mkdir(parents=True, exist_ok=True)
            for old in self.list_removable():
                old.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}", "Choose another --output") from error

    def check_free(self, *, overwrite: bool) -> None:
        """Check that a new run may be written here.

        Raises:
            UsageError: something is there already.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"{self.path} is a file", "Choose another --output")
        if not overwrite and self.is_begun and not self.is_finished:
            raise UsageError(
                f"{self.path} exists already, and that run has not finished",
                f"Continue it with {resume_command(self.path)}, choose another --output, or add --overwrite",
            )
        if (
            any(path.name != LOCK for path in self.path.iterdir())
            and not (overwrite and self.is_begun)
            and not self.is_aborted_start
        ):
            remedy = "Choose another --output" + (", or add --overwrite" if self.is_begun else "")
            raise UsageError(f"{self.path} exists already", remedy)

    def drop_temporary(self) -> None:
        """Remove what a killed process was writing."""
        for path in files.list_temporary(self.path):
            path.unlink(missing_ok=True)

    def drop_leftovers(self) -> None:
        """Remove what killed processes were writing, but nothing that another process may be writing now."""
        for path in files.list_temporary(self.path):
            if path.suffix == ".tmp" and has_no_writer(path):  # safetensors' own have another suffix, and no lock
                with suppress(OSError):  # a run of another user
                    path.unlink()

    def remedy(self, file: RunFile) -> str:
        """Return what the user can do if a file cannot be read."""
        return file.remedy.format(resume=resume_command(self.path))

    def read(self, file: RunFile, schema: "type[Record]") -> "Record | None":
        """Return the record in a JSON file; None if the file is missing.

        Raises:
            RunError: it does not fit its schema, or was changed since it was written.
        """
        from convnext_cli.runs.records import check_digest, convert_record, digest_values, read_json

        path, remedy = file.path(self.path), self.remedy(file)
        try:
            content = read_json(path, remedy)
        except FileNotFoundError:
            return None
        record = convert_record(content, schema, path, remedy)
        if file.has_digest:
            check_digest(content.get("digest"), digest_values(content), path, remedy)
        return record

    def write(self, file: RunFile, content: dict[str, Any]) -> None:
        """Write plain values into a JSON file, with their digest where it has one."""
        if file.has_digest:
            from convnext_cli.runs.records import digest_values

            content = content | {"digest": digest_values(content)}
        write_text(file.path(self.path), json.dumps(content, indent=1) + "\n")

    def read_arrays(self, file: RunFile) -> "dict[str, NDArray[Any]] | None":
        """Return the arrays of a safetensors file; None if it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(file.path(self.path)))
        except (OSError, SafetensorError):
            return None

    def write_arrays(
        self, file: RunFile, arrays: "dict[str, NDArray[Any]]", metadata: dict[str, str] | None = None
    ) -> None:
        """Write arrays and texts into a safetensors file.

        Raises:
            ConvnextError: the disk is full, read-only or gone.
        """
        from safetensors.numpy import save  # its own writer raises no OSError when the disk is full

        path = file.path(self.path)
        try:
            with replace_file(path) as temporary:
                temporary.write_bytes(save(arrays, metadata))
        except OSError as error:
            problem = f"cannot write {path}: {error.strerror}"
            raise ConvnextError(problem, "Check the disk's space and permissions") from error

    def write_plan(self, toml: str) -> None:
        """Write the plan."""
        write_text(self.plan, toml)

    def write_split(self, index: Index) -> None:
        """Write the split of each image, and the folder that the paths start from."""
        write_text(files.SPLIT.path(self.path), format_split(index))
        self.write(files.DATA, describe_data(index))

    def move_data(self, index: Index) -> None:
        """Record that the images of the run's split lie in another folder, if `index` says so."""
        if Path(self.read_data().data) != index.root.absolute():
            self.write_split(index)

    def read_split(self) -> Index:
        """Return the index of `write_split`.

        Raises:
            RunError: a file is missing or damaged.
        """
        from convnext_cli.runs.records import read_text
        from convnext_cli.tasks.registry import read_task

        table = files.SPLIT.path(self.path)
        try:
            data = self.read_data()
            text = read_text(table, RUN_REMEDY)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            reason = f"is not a run: it has no {name}" if self.path.exists() else "does not exist"
            raise RunError(f"{self.path} {reason}", RUN_REMEDY) from error
        task = read_task(data.task, files.DATA.path(self.path), RUN_REMEDY)
        try:
            return parse_split(text, data, task)
        except ValueError as error:
            raise RunError(f"{table} cannot be read: {error}", RUN_REMEDY) from error

    def read_data(self) -> "Data":
        """Return the data folder, and the classes in the order of the model's outputs.

        Raises:
            FileNotFoundError: there is no such file.
            RunError: it does not fit its schema.
        """
        from convnext_cli.runs.records import Data, read_record

        path = files.DATA.path(self.path)
        data = read_record(path, Data, RUN_REMEDY)
        if problem := data.find_problem():
            raise RunError(f"{path} cannot be read: {problem}", RUN_REMEDY)
        return data

    def read_config(self) -> "Config":
        """Return the model's configuration: architecture, classes and preprocessing.

        Raises:
            RunError: it is missing, does not fit its schema, was changed since it was written, or its classes are not
                those of the data.
        """
        from convnext_cli.runs.records import Config, check_digest, read_record

        path = files.CONFIG.path(self.path)
        try:
            config = read_record(path, Config, MODEL_REMEDY)
        except FileNotFoundError as error:
            reason = f"has no trained model: {path.name} is missing" if self.path.exists() else "does not exist"
            raise RunError(f"{self.path} {reason}", MODEL_REMEDY) from error
        if problem := config.find_problem(path):
            raise RunError(f"{path} cannot be read: {problem}", MODEL_REMEDY)
        if files.DATA.path(self.path).exists() and self.read_data().classes != config.label_names:
            raise RunError(f"the classes in {path} differ from those in {files.DATA.name}", MODEL_REMEDY)
        check_digest(config.digest, config.compute_digest(), path, "Restore the original file")
        return config

    def copy_audit(self, other: "RunFolder") -> None:
        """Copy the audit and the image hashes of another run of the same data, byte for byte.

        A damaged audit is thus still reported.
        """
        for file in (files.AUDIT, files.IMAGE_HASHES):
            if (path := file.path(other.path)).is_file():
                with replace_file(file.path(self.path)) as temporary:
                    shutil.copyfile(path, temporary)

    def read_range_test(self) -> dict[str, Any] | None:
        """Return the result of the learning-rate range test; None if there was none.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import RangeTest, convert_record, read_json

        path = files.RANGE_TEST.path(self.path)
        try:
            raw: dict[str, Any] = read_json(path, files.RANGE_TEST.remedy, nan_is_none=True)
        except FileNotFoundError:
            return None
        convert_record(raw, RangeTest, path, files.RANGE_TEST.remedy)
        return raw

    def read_result(self) -> "Result | None":
        """Return the kept epoch and its validation metrics; None before the run has finished.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import Result

        return self.read(files.METRICS, Result)

    def write_log(self, epochs: list[dict[str, Any]]) -> None:
        """Write one line per epoch. The whole file is replaced, so that a kill leaves no partial line."""
        write_text(files.LOG.path(self.path), "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def read_log(self) -> list[dict[str, Any]]:
        """Return the epochs of `write_log`; an empty list if there is no log.

        Raises:
            RunError: a line does not fit its schema.
        """
        from convnext_cli.runs.records import Epoch, convert_record, parse_json, read_text

        path = files.LOG.path(self.path)
        try:
            lines = read_text(path, files.LOG.remedy).splitlines()
        except FileNotFoundError:
            return []
        epochs = []
        for number, line in enumerate(lines, start=1):
            source = f"{path}, line {number},"
            epoch = parse_json(line, source, files.LOG.remedy, nan_is_none=True)
            convert_record(epoch, Epoch, source, files.LOG.remedy)
            epochs.append(epoch)
        return epochs

    def write_calibration(self, calibration: dict[str, Any], arrays: "dict[str, NDArray[Any]]") -> None:
        """Write the calibration, and the arrays that it was fitted on."""
        self.write_arrays(files.CALIBRATION_ARRAYS, arrays, {"weights": calibration["weights"]})
        self.write(files.CALIBRATION, calibration)

    def read_calibration_arrays(self) -> "dict[str, NDArray[Any]]":
        """Return the arrays of `write_calibration`.

        Raises:
            RunError: they are missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = files.CALIBRATION_ARRAYS.path(self.path)
        try:
            path.open("rb").close()  # safetensors calls a file missing that it may not read
            with safe_open(path, "np") as file:
                weights = (file.metadata() or {}).get("weights")  # older runs have none
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except FileNotFoundError as error:
            remedy = f"Give the run itself if this is an exported folder. {files.CALIBRATION_ARRAYS.remedy}"
            raise RunError(f"{path} is missing", remedy) from error
        except (OSError, SafetensorError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error})", files.CALIBRATION_ARRAYS.remedy) from error
        if weights not in (None, self.fingerprint_weights()):
            raise RunError(
                f"{path} cannot be read: it was fitted for other weights ({weights})", files.CALIBRATION_ARRAYS.remedy
            )
        return arrays

    def fingerprint_weights(self) -> str:
        """Return a checksum of the weights, by which a calibration fitted for other weights is recognised."""
        try:
            return f"{checksum_file(files.MODEL.path(self.path)):08x}"
        except OSError as error:
            problem = f"{files.MODEL.path(self.path)} cannot be read: {error.strerror}"
            raise RunError(problem, "Give a finished run") from error

    def record_test(self, entry: dict[str, Any]) -> int:
        """Record an evaluation on a test split, and return the number of evaluations so far.

        Raises:
            RunError: it cannot be written. An evaluation without a record would make the test look unused.
        """
        from convnext_cli.runs.records import digest_values

        try:
            append_json_line(self.tests, entry | {"digest": digest_values(entry)})
        except OSError as error:
            remedy = "Free disk space, or make the folder writable: each evaluation on the test split is recorded there"
            raise RunError(f"cannot write {self.tests}: {error.strerror}", remedy) from error
        # A damaged line was an evaluation too.
        return sum(bool(line.strip()) for line in self.tests.read_bytes().splitlines())

    def read_tests(self) -> list[dict[str, Any]]:
        """Return the evaluations of `record_test`, oldest first. A partial line, from a full disk, is skipped.

        Raises:
            RunError: a line does not fit its schema, or was changed since it was written.
        """
        from convnext_cli.runs.records import Test, check_digest, convert_record, digest_values

        tests = read_json_lines(self.tests)
        for number, entry in enumerate(tests, start=1):
            source = f"{self.tests}, evaluation {number},"
            convert_record(entry, Test, source, files.TESTS.remedy)
            check_digest(entry.get("digest"), digest_values(entry), source, files.TESTS.remedy)
        return tests

    def list_removable(self) -> list[Path]:
        """Return all files of the run, in an order in which they can be removed."""
        return files.list_removable(self.path)

    @property
    def is_aborted_start(self) -> bool:
        """True if everything here was left by a run that was killed before it had begun."""
        last = files.CHECKPOINT.path(self.path).parent
        known = {last, self.plots, self.path / LOCK, *files.list_beginning(self.path)}
        return last.is_dir() and set(self.path.rglob("*")) <= known
