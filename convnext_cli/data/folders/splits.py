"""Folders and tables of splits: `train`, `Training Set`, `seg_train` beside `seg_test`."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from convnext_cli.data.folders.words import GENERIC_WORDS, list_names, list_words
from convnext_cli.data.index import SPLITS
from convnext_cli.data.tree import Folder
from convnext_cli.encoding import normalise_name
from convnext_cli.errors import DataError

SPLIT_NAMES = {
    "train": "train", "training": "train", "trainset": "train", "trainingset": "train", "traindata": "train",
    "trn": "train", "tst": "test", "held out": "test", "hold out": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "valset": "val", "validset": "val",
    "validationset": "val", "validate": "val",
    "test": "test", "testing": "test", "tests": "test", "holdout": "test", "testset": "test", "testdata": "test",
    "eval": "test", "evaluation": "test",
    "entrenamiento": "train", "treino": "train", "treinamento": "train", "entrainement": "train",
    "entraînement": "train", "apprentissage": "train", "addestramento": "train", "训练": "train", "训练集": "train",
    "訓練": "train", "訓練集": "train", "学習": "train", "학습": "train", "훈련": "train", "обучение": "train",
    "eğitim": "train", "trening": "train", "treningowy": "train", "trénink": "train", "träning": "train",
    "træning": "train", "обучающая": "train", "тренировочная": "train", "学習用": "train", "訓練用": "train",
    "학습용": "train", "تدريب": "train", "प्रशिक्षण": "train", "latih": "train", "εκπαίδευση": "train",
    "huấn luyện": "train", "huan luyen": "train", "xác thực": "val", "xac thuc": "val", "kiểm định": "val",
    "kiem dinh": "val", "kiểm tra": "test", "kiem tra": "test", "kiểm thử": "test", "kiem thu": "test",
    "validación": "val", "validacion": "val", "validação": "val", "validacao": "val", "validazione": "val",
    "validierung": "val", "验证": "val", "验证集": "val", "驗證": "val", "驗證集": "val", "検証": "val",
    "검증": "val", "валидация": "val", "doğrulama": "val", "convalida": "val", "validatie": "val", "walidacja": "val",
    "walidacyjny": "val", "validace": "val", "validering": "val", "проверочная": "val", "валидационная": "val",
    "検証用": "val", "검증용": "val", "validasi": "val", "επικύρωση": "val",
    "prueba": "test", "pruebas": "test", "teste": "test", "测试": "test", "测试集": "test", "測試": "test",
    "測試集": "test", "テスト": "test", "테스트": "test", "тест": "test", "prova": "test", "essai": "test",
    "essais": "test", "testowy": "test", "тестовая": "test", "評価": "test", "評価用": "test", "テスト用": "test",
    "시험": "test", "평가": "test", "اختبار": "test", "परीक्षण": "test", "uji": "test", "δοκιμή": "test",
}  # fmt: skip
PARTITION = {"0": "train", "1": "val", "2": "test"}
"""The numbers of splits in a `partition` such as CelebA's."""
UNLABELLED = "unlabelled"
_BOTH = re.compile(r"train[ _-]?val(?:idation)?(?![a-z])", re.IGNORECASE)
"""In the name of a list: the images for training and validation."""
_SPLIT_OF = SPLIT_NAMES | dict.fromkeys(
    ("pred", "preds", "predict", "prediction", "predictions", "inference", "unlabelled", "unlabeled", "unsup"),
    UNLABELLED,
)
_ANY_SPLIT = re.compile(rf"(?<!\S)(?:{'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?!\S)")
_OF = frozenset(("d", "de"))
"""Words whose form depends on the next one, as in `jeu d'entraînement` and `jeu de test`."""

_PLACES: tuple[Callable[[Path], tuple[object, str]], ...] = (
    lambda path: (path.parent, path.stem),
    lambda path: ((path.parent, path.suffix.lower()), path.stem),
    lambda path: ((path.parent.parent, path.stem), path.parent.name),
    lambda path: ((path.parent.parent, path.name), path.parent.name),
)
"""Of a table's path, the part that the tables of all splits share and the part with the split's name.

The first function by which tables make a set of splits is used."""

SplitFolders = dict[str, list[Folder]]
"""The folders of one set of splits, by split."""


class AmbiguousLayoutError(DataError):
    """Folders that could mean several things."""


def find_split(name: str) -> str | None:
    """Return the split that a folder's or file's name means; None if it means none.

    One of the words is the name of a split: `seg_train`, `Training Set`, `1_train`. Not so in `trainer`, and not in
    `train_test`, which has two.
    """
    matches = _ANY_SPLIT.findall(" ".join(list_words(name)))
    return _SPLIT_OF[matches[0]] if len(matches) == 1 else None


def find_simple_split(name: str) -> str | None:
    """Return the split whose name is the whole name: `train`, `Held-out`; None for others."""
    return SPLIT_NAMES.get(re.sub(r"[\s_-]+", " ", normalise_name(name).casefold()))


def find_split_folders(folders: Iterable[Folder]) -> SplitFolders:
    """Return the folders that are one set of splits; empty if there is no such set.

    One set has the same words beside the split's: `seg_train` and `seg_test`. It has a training folder and another
    split, or no other folder lies beside it. Composite names beside other folders of images are ordinary names, unless
    the training folder has classes inside.

    Raises:
        AmbiguousLayoutError: there are two sets of splits, or other folders beside one.
    """
    if not (siblings := sorted(folders, key=lambda folder: folder.name)):
        return {}
    simple, sets = _group_by_split(siblings)
    size = sum(map(len, simple.values()))
    if ("train" in simple and (len(simple) > 1 or size == len(siblings))) or (len(simple) == len(siblings) == 1):
        unlabelled = sets.get((), {}).get(UNLABELLED, [])
        return simple | ({UNLABELLED: unlabelled} if unlabelled else {})
    complete = [
        splits
        for splits in sets.values()
        if "train" in splits
        and any(folder.count for folder in splits["train"])
        and (len(splits) > 1 or sum(map(len, splits.values())) == len(siblings) == 1)
    ]
    if len(complete) > 1:
        words = sorted((" ".join(others) for others, splits in sets.items() if splits in complete), key=len)
        pattern = "|".join(reversed(words)).replace(" ", ".?")  # `abnormal` before `normal`
        raise AmbiguousLayoutError(
            f"{' and '.join(list_split_folders(splits) for splits in complete[:2])} are two sets of splits",
            f"Give a folder that has one of them, --label-from '(?i){pattern}' if these are the classes, or a CSV file "
            "with path, label and split",
        )
    if complete:
        return _check_siblings(complete[0], siblings)
    for known in simple.values():
        _check_unknown_splits(known, siblings)
    return {}


def _group_by_split(folders: Sequence[Folder]) -> tuple[SplitFolders, dict[tuple[str, ...], SplitFolders]]:
    """Return the folders with simple names by split, and those with composite names by their other words and split."""
    simple: SplitFolders = {}
    sets: dict[tuple[str, ...], SplitFolders] = {}
    for folder in folders:
        if split := find_simple_split(folder.name):
            simple.setdefault(split, []).append(folder)
        if division := _divide_name(folder.name):
            split, others = division
            sets.setdefault(others, {}).setdefault(split, []).append(folder)
    return simple, sets


def _divide_name(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that a name means, and its other words; None if it means none."""
    split = find_split(name)
    if split is None:
        return None
    words = _ANY_SPLIT.sub("", " ".join(list_words(name))).split()
    return split, tuple(word for word in words if word not in _OF and not word.isdigit())


def find_split_tables(paths: Iterable[Path]) -> list[dict[str, Path]]:
    """Return the sets of tables that are splits by their names or their folders', the training split first.

    One set has the same words beside the split's: `train.csv` and `val.xlsx`, `train_labels.csv` and `test_labels.csv`;
    or one name in the folders of splits: `train/metadata.csv` and `test/metadata.csv`. If a split has several, as
    `train.csv` and `train.xlsx`, those of one format are a set.
    """
    left, sets = list(paths), list[dict[str, Path]]()
    for place in _PLACES:
        sets += _collect_sets({path: place(path) for path in left})
        left = [path for path in left if not any(path in splits.values() for splits in sets)]
    return sets


def is_split_list(name: str) -> bool:
    """Return True if a file name is that of a text file that may list splits: `train.txt`, `train_val_list.txt`."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return suffix.lower() == ".txt" and bool(SPLIT_NAMES.keys() & set(list_words(stem)) or _BOTH.search(stem))


def find_split_lists(paths: Iterable[Path]) -> list[dict[str, Path]]:
    """Return the sets of text files that are lists of splits by their names, as `find_split_tables` does.

    `trainval.txt` lists the training split if no file lists that alone. Of `train1.txt`, `test1.txt`, `train2.txt` and
    `test2.txt`, those of one number are a set.
    """
    numbers = {path: tuple(map(int, re.findall(r"\d+", path.stem))) for path in paths}
    left = sorted(numbers, key=lambda path: (path.parent, numbers[path], path.name))
    sets: list[dict[str, Path]] = []
    for has_both in (False, True):
        names = {path: _BOTH.sub("train", path.stem) if has_both else path.stem for path in left}
        for numbered in (False, True):
            sets += _collect_sets({path: ((path.parent, numbered and numbers[path]), names[path]) for path in left})
            left = [path for path in left if not any(path in splits.values() for splits in sets)]
    return sets


def _collect_sets(names: Mapping[Path, tuple[object, str]]) -> list[dict[str, Path]]:
    """Return the sets of files that have a training split and another; `names` has the place and the name of each."""
    sets: dict[tuple[object, tuple[str, ...]], dict[str, list[Path]]] = {}
    for path, (place, name) in names.items():
        division = _divide_name(name)
        if division and division[0] in SPLITS:
            split, others = division
            sets.setdefault((place, others), {}).setdefault(split, []).append(path)
    return [
        {split: files[split][0] for split in SPLITS if split in files}
        for files in sets.values()
        if "train" in files and len(files) > 1 and all(len(members) == 1 for members in files.values())
    ]


def _check_siblings(splits: SplitFolders, siblings: Sequence[Folder]) -> SplitFolders:
    """Return `splits` if no other folder with images lies beside them; empty if their names are ordinary names.

    Raises:
        AmbiguousLayoutError: other folders lie beside them, and the training folder has classes inside.
    """
    members = {folder.path for folders in splits.values() for folder in folders}
    others = [folder for folder in siblings if folder.count and folder.path not in members]
    if not others:
        return splits
    if any(len(enter_split(folder).filled) > 1 for folder in splits["train"]):
        raise AmbiguousLayoutError(
            f"{list_split_folders(splits)} look like splits, and {list_names(others)} lies beside them",
            "Move the one or the other away, leave folders out with --exclude, or give a CSV file with path, label and "
            "split",
        )
    return {}


def _check_unknown_splits(known: Sequence[Folder], siblings: Sequence[Folder]) -> None:
    """Check that no folder beside those of a split has its classes inside: it would be a split of another name."""
    classes = {folder.name for folder in enter_split(known[0]).filled}
    alike = [top for top in siblings if top not in known and top.filled and {f.name for f in top.filled} <= classes]
    if len(classes) > 1 and alike:
        raise AmbiguousLayoutError(
            f"{list_names(alike)} look like splits: they have the same folders as {list_names(known)}",
            "Name them train, val and test, leave them out with --exclude, or give a table with path, label and split",
        )


def enter_split(folder: Folder) -> Folder:
    """Return the folder that has the classes of a split: inside `seg_train/seg_train`, while names only repeat."""
    name, split = normalise_name(folder.name).casefold(), find_split(folder.name)
    while not folder.images and len(folder.filled) == 1:
        [only] = folder.filled
        is_repetition = normalise_name(only.name).casefold() == name or set(list_words(only.name)) <= GENERIC_WORDS
        if not is_repetition and not (split and find_split(only.name) == split):
            break
        folder = only
    return folder


def list_split_folders(splits: SplitFolders) -> str:
    """Return the names of the folders of splits as text."""
    return list_names([folder for folders in splits.values() for folder in folders])
