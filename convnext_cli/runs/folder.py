"""The run folder: writes and reads its files, which `files.py` declares; the model's two are `saved_model`'s."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convnext_cli.data.index import Index
from convnext_cli.errors import ConvnextError, RunError, UsageError
from convnext_cli.files import append_json_line, checksum_file, read_json_lines, replace_file, write_text
from convnext_cli.locks import LOCK
from convnext_cli.runs.files import (
    AUDIT,
    CALIBRATION,
    CALIBRATION_ARRAYS,
    CANDIDATE,
    CHECKPOINT,
    CONFIG,
    CURVES,
    DATA,
    ENVIRONMENT,
    FOLDS_PLAN,
    IMAGE_HASHES,
    LOG,
    METRICS,
    MODEL,
    ONNX,
    ONNX_INT8,
    ORIGIN,
    PLAN,
    PLOTS,
    POOLING,
    PT2,
    RANGE_TEST,
    RANGE_TEST_PLOT,
    REPORT,
    SPLIT,
    TESTS,
    RunFile,
    list_beginning,
    list_removable,
    list_temporary,
)
from convnext_cli.runs.split import describe_data, format_split, parse_split
from convnext_cli.text import quote

if TYPE_CHECKING:
    from numpy.typing import NDArray  # for its name only: `recommend` answers without NumPy

    from convnext_cli.runs.records import AuditRecord, Config, Data, Environment, Result

Kind = TypeVar("Kind")
RUNS = Path("runs")
MODEL_REMEDY = "Give a folder that `convnext finetune` made and finished an epoch in"
CALIBRATION_REMEDY = "Delete it; `convnext eval` fits it again"
REFIT_REMEDY = f"Delete {CALIBRATION.name} there; `convnext eval` fits both again"
POOLING_REMEDY = "Delete it; `convnext eval --per group` fits it again"
RUN_REMEDY = "Give a folder that `convnext finetune` made"
RESTART_REMEDY = "Start a new run with another --output"


def restore_remedy(item: str) -> str:
    """Return the remedy for something in a run, or its data, that was changed since it began."""
    return f"Restore {item}, or start a new run with another --output"


def resume_command(path: Path) -> str:
    """Return the command that resumes the run in a folder."""
    return f"`convnext finetune --resume {quote(path)}`"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run on disk."""

    path: Path

    @property
    def plan(self) -> Path:
        """Resolved settings with their reasons; `--config` repeats the run with it."""
        return PLAN.path(self.path)

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` optimizer steps."""
        return CHECKPOINT.path(self.path, f"{step:08}")

    def list_checkpoints(self) -> list[Path]:
        """Return the paths of the checkpoints, the newest first."""
        return sorted(CHECKPOINT.find(self.path), key=lambda path: (len(path.name), path.name), reverse=True)

    def drop_checkpoints(self, *, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for old in self.list_checkpoints()[keep:]:
            old.unlink(missing_ok=True)

    def candidate(self, epoch: int) -> Path:
        """Return the path of an epoch's weights, which are kept until the best epochs are averaged."""
        return CANDIDATE.path(self.path, f"{epoch:04}")

    def list_candidates(self) -> list[Path]:
        """Return the paths of the kept epochs' weights."""
        return list(CANDIDATE.find(self.path))

    def write_origin(self, arrays: "dict[str, NDArray[Any]]") -> None:
        """Write the digests of the split's rows and of the images' bytes.

        Raises:
            ConvnextError: the disk is full, read-only or gone.
        """
        self._write_arrays(ORIGIN, arrays)

    def read_origin(self) -> "dict[str, NDArray[Any]]":
        """Return the arrays of `write_origin`; an empty dictionary if the file is missing or damaged."""
        return self._read_arrays(ORIGIN) or {}

    @property
    def metrics(self) -> Path:
        """Metrics of the kept weights; written last."""
        return METRICS.path(self.path)

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
        return any(file.path(self.path).exists() for file in (PLAN, CONFIG, FOLDS_PLAN))

    @property
    def report(self) -> Path:
        """The newest evaluation, for people."""
        return REPORT.path(self.path)

    @property
    def plots(self) -> Path:
        """Folder of the report's plots, as image files."""
        return PLOTS.path(self.path).parent

    @property
    def curves(self) -> Path:
        """Plot of the training so far."""
        return CURVES.path(self.path)

    @property
    def range_test_plot(self) -> Path:
        """Plot of the learning-rate range test; its numbers are beside it."""
        return RANGE_TEST_PLOT.path(self.path)

    def exported(self, format: str, *, int8: bool = False) -> Path:
        """Return the path of the exported model; `format` is `onnx` or `pt2`."""
        return {"onnx": ONNX_INT8 if int8 else ONNX, "pt2": PT2}[format].path(self.path)

    @property
    def tests(self) -> Path:
        """One line for each evaluation on a test split."""
        return TESTS.path(self.path)

    def create(self, *, overwrite: bool) -> None:
        """Make the folder, which must be new, empty, or a run that `overwrite` allows to replace.

        Raises:
            UsageError: something else is there.
            RunError: the folder cannot be written.
        """
        self.check_free(overwrite=overwrite)
        try:
            (self.path / "last").mkdir(parents=True, exist_ok=True)
            for old in self._removable():
                old.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {error.strerror}", "Choose another --output") from error

    def drop_temporary(self) -> None:
        """Remove what a killed process was writing."""
        for path in list_temporary(self.path):
            path.unlink(missing_ok=True)

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
            and not self._is_aborted_start()
        ):
            remedy = "Choose another --output" + (", or add --overwrite" if self.is_begun else "")
            raise UsageError(f"{self.path} exists already", remedy)

    def write_plan(self, toml: str) -> None:
        """Write the plan."""
        write_text(self.plan, toml)

    def write_split(self, index: Index) -> None:
        """Write the split of each image, and the folder that the paths start from."""
        write_text(SPLIT.path(self.path), format_split(index))
        self._write_json(DATA, describe_data(index))

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

        table = SPLIT.path(self.path)
        try:
            data = self.read_data()
            text = read_text(table, RUN_REMEDY)
        except FileNotFoundError as error:
            name = Path(error.filename).name
            reason = f"is not a run: it has no {name}" if self.path.exists() else "does not exist"
            raise RunError(f"{self.path} {reason}", RUN_REMEDY) from error
        task = read_task(data.task, DATA.path(self.path), RUN_REMEDY)
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
        from convnext_cli.runs.records import Data, read_record  # here and below: `recommend` starts without it

        path = DATA.path(self.path)
        data = read_record(path, Data, RUN_REMEDY)
        if repeated := sorted(name for name, count in Counter(data.classes).items() if count > 1):
            raise RunError(f"{path} cannot be read: classes: {repeated[0]!r} appears twice", RUN_REMEDY)
        return data

    def read_config(self) -> "Config":
        """Return the model's configuration: architecture, classes and preprocessing.

        Raises:
            RunError: it is missing, does not fit its schema, or its classes are not those of the data.
        """
        from convnext_cli.runs.records import Config, read_record

        path = CONFIG.path(self.path)
        try:
            config = read_record(path, Config, MODEL_REMEDY)
        except FileNotFoundError as error:
            raise RunError(f"{self.path} has no trained model: {path.name} is missing", MODEL_REMEDY) from error
        names = config.label_names
        outputs = config.count_outputs(path)
        if len(set(names)) != len(names) or config.num_classes not in (None, outputs):
            problem = f"{len(set(names))} class names for {config.num_classes or outputs} outputs"
            raise RunError(f"{path} cannot be read: label_names: {problem}", MODEL_REMEDY)
        preprocessing = config.pretrained_cfg
        channels = preprocessing.input_size[0]
        means, deviations, in_chans = len(preprocessing.mean), len(preprocessing.std), config.model_args.in_chans
        if {means, deviations} not in ({1}, {3}) or channels != in_chans:
            problem = f"{means} means, {deviations} deviations and in_chans = {in_chans} for {channels} channels"
            raise RunError(f"{path} cannot be read: pretrained_cfg: {problem}", MODEL_REMEDY)
        if DATA.path(self.path).exists() and self.read_data().classes != names:
            raise RunError(f"the classes in {path} differ from those in {DATA.name}", MODEL_REMEDY)
        return config

    def read_result(self) -> "Result | None":
        """Return the kept epoch and its validation metrics; None before the run has finished.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import Result

        return self._read_if_there(self.metrics, Result, f"Delete it; {resume_command(self.path)} writes it again")

    def read_audit(self) -> "AuditRecord | None":
        """Return the audit of the data; None if it was switched off.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import AuditRecord

        return self._read_if_there(AUDIT.path(self.path), AuditRecord, "Run `convnext check` on the data")

    def read_environment(self) -> "Environment | None":
        """Return versions, device and command line; None if they were not recorded.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import Environment

        return self._read_if_there(ENVIRONMENT.path(self.path), Environment, "Restore the file")

    def _read_if_there(self, path: Path, kind: "type[Kind]", remedy: str) -> "Kind | None":
        from convnext_cli.runs.records import read_record

        try:
            return read_record(path, kind, remedy)
        except FileNotFoundError:
            return None

    def _read_json_if_there(self, path: Path, remedy: str) -> Any:
        from convnext_cli.runs.records import read_json

        try:
            return read_json(path, remedy)
        except FileNotFoundError:
            return None

    def _write_json(self, file: RunFile, content: dict[str, Any]) -> None:
        write_text(file.path(self.path), json.dumps(content, indent=1) + "\n")

    def _write_arrays(
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
            raise ConvnextError(f"cannot write {path} ({error})", "Check the disk's space and permissions") from error

    def _read_arrays(self, file: RunFile) -> "dict[str, NDArray[Any]] | None":
        """Return the arrays of a safetensors file; None if it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return dict(load_file(file.path(self.path)))
        except (OSError, SafetensorError):
            return None

    def write_audit(self, audit: dict[str, Any]) -> None:
        """Write the audit of the data."""
        self._write_json(AUDIT, audit)

    def copy_audit(self, other: "RunFolder") -> None:
        """Copy the audit and the image hashes of another run of the same data, byte for byte.

        A damaged audit is thus still reported.
        """
        for file in (AUDIT, IMAGE_HASHES):
            if (path := file.path(other.path)).is_file():
                with replace_file(file.path(self.path)) as temporary:
                    shutil.copyfile(path, temporary)

    def write_image_hashes(self, hashes: "dict[str, NDArray[Any]]") -> None:
        """Write the digest, the perceptual hash, the 12 x 12 px thumbnail and the size of each row of the split."""
        self._write_arrays(IMAGE_HASHES, hashes)

    def read_image_hashes(self) -> "dict[str, NDArray[Any]] | None":
        """Return the arrays of `write_image_hashes`; None if the file is missing or damaged."""
        return self._read_arrays(IMAGE_HASHES)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write versions, device and command line."""
        self._write_json(ENVIRONMENT, environment)

    def write_range_test(self, result: dict[str, Any]) -> None:
        """Write the result of the learning-rate range test."""
        self._write_json(RANGE_TEST, result)

    def read_range_test(self) -> dict[str, Any] | None:
        """Return the result of `write_range_test`; None if there was no such test.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import RangeTest, convert_record, read_json

        path, remedy = RANGE_TEST.path(self.path), f"Delete it: {RANGE_TEST.name} is only used for the plot"
        try:
            raw: dict[str, Any] = read_json(path, remedy, nan_is_none=True)
        except FileNotFoundError:
            return None
        convert_record(raw, RangeTest, path, remedy)
        return raw

    def write_log(self, epochs: list[dict[str, Any]]) -> None:
        """Write one line per epoch. The whole file is replaced, so that a kill leaves no partial line."""
        write_text(LOG.path(self.path), "".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the final metrics, which mark the run as finished."""
        self._write_json(METRICS, metrics)

    def read_log(self) -> list[dict[str, Any]]:
        """Return the epochs of `write_log`; an empty list if there is no log.

        Raises:
            RunError: a line does not fit its schema.
        """
        from convnext_cli.runs.records import Epoch, convert_record, parse_json, read_text

        path, remedy = LOG.path(self.path), "Delete it: it is only used for the plots"
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

    def write_calibration(self, calibration: dict[str, Any], arrays: "dict[str, NDArray[Any]]") -> None:
        """Write the calibration, and the arrays that it was fitted on."""
        self._write_arrays(CALIBRATION_ARRAYS, arrays, {"weights": calibration["weights"]})
        self._write_json(CALIBRATION, calibration)

    def read_calibration(self) -> Any:
        """Return the calibration as plain values; None if there is none.

        Raises:
            RunError: the file is not JSON.
        """
        return self._read_json_if_there(CALIBRATION.path(self.path), CALIBRATION_REMEDY)

    def read_calibration_arrays(self) -> "dict[str, NDArray[Any]]":
        """Return the arrays of `write_calibration`.

        Raises:
            RunError: they are missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = CALIBRATION_ARRAYS.path(self.path)
        try:
            with safe_open(path, "np") as file:
                weights = (file.metadata() or {}).get("weights")  # older runs have none
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, SafetensorError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error})", REFIT_REMEDY) from error
        if weights not in (None, self.fingerprint_weights()):
            raise RunError(f"{path} cannot be read: it was fitted for other weights ({weights})", REFIT_REMEDY)
        return arrays

    def write_pooling(self, pooling: dict[str, Any]) -> None:
        """Write the rule that pools the images of a group, with its calibration."""
        self._write_json(POOLING, pooling)

    def read_pooling(self) -> Any:
        """Return the pooling as plain values; None if there is none.

        Raises:
            RunError: the file is not JSON.
        """
        return self._read_json_if_there(POOLING.path(self.path), POOLING_REMEDY)

    def fingerprint_weights(self) -> str:
        """Return a checksum of the weights, by which a calibration fitted for other weights is recognised."""
        try:
            return f"{checksum_file(MODEL.path(self.path)):08x}"
        except OSError as error:
            raise RunError(f"{MODEL.path(self.path)} cannot be read", "Give a finished run") from error

    def record_test(self, entry: dict[str, Any]) -> int:
        """Record an evaluation on a test split, and return the number of evaluations so far.

        Raises:
            RunError: it cannot be written. An evaluation without a record would make the test look unused.
        """
        try:
            append_json_line(self.tests, entry)
        except OSError as error:
            remedy = "Make the run folder writable: each evaluation on the test split is recorded there"
            raise RunError(f"cannot write {self.tests}: {error.strerror}", remedy) from error
        # A damaged line was an evaluation too.
        return sum(bool(line.strip()) for line in self.tests.read_bytes().splitlines())

    def read_tests(self) -> list[dict[str, Any]]:
        """Return the evaluations of `record_test`, oldest first. A partial line, from a full disk, is skipped.

        Raises:
            RunError: a line does not fit its schema.
        """
        from convnext_cli.runs.records import Test, convert_record

        remedy = "Correct the line; each evaluation on the test split is recorded there"
        tests = read_json_lines(self.tests)
        for number, entry in enumerate(tests, start=1):
            convert_record(entry, Test, f"{self.tests}, evaluation {number},", remedy)
        return tests

    def _removable(self) -> list[Path]:
        """Return all files of the run, in an order in which they can be removed."""
        return list_removable(self.path)

    def _is_aborted_start(self) -> bool:
        """Return True if everything here was left by a run that was killed before it had begun."""
        last = CHECKPOINT.path(self.path).parent
        known = {last, self.plots, self.path / LOCK, *list_beginning(self.path)}
        return last.is_dir() and set(self.path.rglob("*")) <= known
