"""The preparation of a training, new or resumed, and the notices that follow from it."""

from dataclasses import dataclass, replace

from convnext_cli.data.audit.findings import Finding, Kind
from convnext_cli.data.dataset import Dataset
from convnext_cli.data.groups import find_groups_across_splits
from convnext_cli.data.index import Index, describe_skipped
from convnext_cli.data.split import TOO_FEW, advise_on_validation, explain_small_validation
from convnext_cli.data.tree import CLOSED
from convnext_cli.machine import Machine
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.progress import Notice
from convnext_cli.recipes.fingerprint import Fingerprint
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs.files import AUDIT, IMAGE_HASHES
from convnext_cli.runs.folder import RunFolder
from convnext_cli.text import format_count, shorten_names
from convnext_cli.training.origin import Origin
from convnext_cli.training.request import TrainRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """Data, split, model and plan of a training."""

    request: TrainRequest
    """The request, with model, weights and number of folds resolved."""
    dataset: Dataset | None
    """The data set; None for a resumed run."""
    index: Index
    """The images with their split; in a cross-validation those of the first fold."""
    fold_index: Index | None
    """In a cross-validation the images with their validation fold; else None."""
    architecture: Architecture
    tag: Tag | None
    machine: Machine
    plan: Plan
    image_digest: str
    """Digest of the sizes in bytes of the training and validation images."""
    fingerprint: Fingerprint | None
    """Properties of the images; None for a resumed run."""
    plan_notices: tuple[Notice, ...]
    """Notices about the plan; for a resumed run, about allowed changes since it began."""
    origin: Origin | None = None
    """The recorded start of the run; None for a new run."""
    device_notices: tuple[Notice, ...] = ()
    """Notices about the device, from torch."""

    @property
    def small_validation(self) -> str | None:
        """Why the validation split is too small to choose the best epoch by; None if it is large enough."""
        return explain_small_validation(self.index)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """All notices about data, split and plan."""
        notices = self.dataset.list_notices() if self.dataset is not None else []
        for finding in self._find_broken_folds():
            notices.append(Notice(f"{finding.title}; {finding.effect}. {finding.action}", finding.severity))
        return (*notices, *self._list_split_notices(), *self.plan_notices, *self.device_notices)

    def write_data(self, run: RunFolder) -> None:
        """Write split, audit and image hashes into a new run or cross-validation."""
        index, audit = self.fold_index or self.index, self.dataset and self.dataset.audit
        run.write_split(index)
        if audit:
            audit = replace(audit, findings=(*audit.findings, *self._find_broken_folds()))
            run.write(AUDIT, audit.to_dict())
            run.write_arrays(IMAGE_HASHES, audit.list_image_hashes(index))

    def _find_broken_folds(self) -> list[Finding]:
        """Return a finding if the table's own folds, or the values left out, separate groups or duplicates."""
        if self.dataset is None or not self.dataset.index.folds or not self.plan.settings.folds:
            return []
        groups, folds = self.dataset.index.groups, self.dataset.index.folds
        count = len(find_groups_across_splits(groups, folds)) if groups else 0
        count += sum(len({folds[row] for row in rows} - {""}) > 1 for rows in self.dataset.duplicate_sets)
        if not count:
            return []
        if self.index.fold_names:
            number = format_count(count, "group or duplicate has", "groups or duplicates have")
            title = f"leakage: {number} images with two values of {self.plan.settings.leave_out}"
            effect, action = "external metrics will be too high", "kept; `check` names duplicates"
        else:
            number = format_count(count, "group or duplicate is", "groups or duplicates are")
            title = f"leakage: {number} in more than one of the table's folds"
            effect, action = "validation scores will be too high", "--resplit draws folds that keep them together"
        kind = Kind.GROUPS_ACROSS_SPLITS
        return [Finding(kind=kind, severity="warning", title=title, count=count, effect=effect, action=action)]

    def _list_split_notices(self) -> list[Notice]:
        """Return notices about a small validation split, missing test images, and skipped files."""
        index, settings, small_validation, notices = self.index, self.plan.settings, self.small_validation, []
        own = self.dataset.index.splits if self.dataset is not None and not index.fold_names else ()
        if small_validation:
            effect = f"{TOO_FEW}, so the last one is kept"
            if not index.rows("val"):
                effect = "the last epoch is kept, not the best one, and the model is not calibrated"
            if settings.patience:
                effect += "; --patience has no effect"
            advice = "Fewer folds make it larger"
            if not settings.folds or index.fold_names:
                advice = advise_on_validation(index, own, settings.val_fraction)
            notices.append(Notice(f"{small_validation}: {effect}. {advice}", "warning"))
        absent = [name for name, n in zip(index.classes, index.count_classes("test"), strict=True) if not n]
        if len(absent) == len(index.classes):
            choice = "" if small_validation else "; choosing the epoch makes validation scores slightly too high"
            remedy = "; --resplit draws new splits with one" if "train" in own else ""
            notices.append(Notice(f"there is no test split{choice}{remedy}"))
        elif absent:
            notices.append(Notice(f"the test split has no image of {shorten_names(absent)}"))
        if index.skipped:
            is_closed = any(reason.startswith(CLOSED) for reason in index.skipped)
            text = f"skipped in the data folder: {describe_skipped(index.skipped)}"
            notices.append(Notice(text, "warning" if is_closed else "note"))
        return notices
