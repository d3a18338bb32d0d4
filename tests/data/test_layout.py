"""Tables of layouts: recognised ones with classes and splits, and refused ones with the message."""

import os
import re
import shlex
import shutil
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from convnext_cli.data.index import check_trainable
from convnext_cli.data.scan import scan_folder
from convnext_cli.data.sources import scan_data
from convnext_cli.encoding import read_text
from convnext_cli.errors import DataError, UsageError
from convnext_cli.tasks.reading import TableOptions
from tests.conftest import save_image

Form = Literal["NFC", "NFD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_image(tmp_path_factory.mktemp("image") / "a.png")


def make(root: Path, words: str, image: Path, number: int = 3) -> Path:
    """Make files, one per word: `a/b/` has `number` images, `a.png` is one, `t.csv:…` is a table (`|` ends lines)."""
    for line in words.split():
        name, _, text = line.partition(":")
        path = root / name.replace("~", " ")
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("|", "\n").replace("~", " ") + "\n")
        elif name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            for k in range(number):
                shutil.copyfile(image, path / f"{k}.png")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, path)
    return root


# files, then classes and the images of each split
RECOGNISED = {
    # ordinary sets, which stay as they were
    "classes": ("a/ b/", "a b", {"": 6}),
    "patients inside the classes": ("a/p1/ a/p2/ b/p3/ b/p4/", "a b", {"": 12}),
    "simple splits": ("train/a/ train/b/ val/a/ val/b/ test/a/ test/b/", "a b", {"train": 6, "val": 6, "test": 6}),
    "splits in other words": ("Training/a/ Training/b/ VALID/a/ testing/b/", "a b", {"train": 6, "val": 3, "test": 3}),
    "splits in Spanish": (
        "Entrenamiento/a/ Entrenamiento/b/ Validación/a/ prueba/b/",
        "a b",
        {"train": 6, "val": 3, "test": 3},
    ),
    "splits in Chinese": ("训练集/a/ 训练集/b/ 验证集/a/ 测试集/b/", "a b", {"train": 6, "val": 3, "test": 3}),
    "splits in German": ("Training/a/ Training/b/ Validierung/a/ Test/b/", "a b", {"train": 6, "val": 3, "test": 3}),
    "splits in Italian": (
        "addestramento/a/ addestramento/b/ convalida/a/ prova/b/",
        "a b",
        {"train": 6, "val": 3, "test": 3},
    ),
    "splits in Russian": ("обучающая/a/ обучающая/b/ тестовая/a/", "a b", {"train": 6, "test": 3}),
    "splits in Japanese": ("学習用/a/ 学習用/b/ 検証用/a/ 評価用/b/", "a b", {"train": 6, "val": 3, "test": 3}),
    "splits in Vietnamese": (
        "huấn_luyện/a/ huấn_luyện/b/ Kiểm~định/a/ kiểm-tra/b/",
        "a b",
        {"train": 6, "val": 3, "test": 3},
    ),
    "sets in Vietnamese": (
        "tập_huấn_luyện/a/ tập_huấn_luyện/b/ tập_kiểm_tra/a/",
        "a b",
        {"train": 6, "test": 3},
    ),
    "splits in French, elided": (
        "jeu~d'entraînement/a/ jeu~d'entraînement/b/ jeu~de~test/a/",
        "a b",
        {"train": 6, "test": 3},
    ),
    "short names of splits": ("trn/a/ trn/b/ hold-out/a/", "a b", {"train": 6, "test": 3}),
    "scripts as classes": ("latin/bold/ latin/thin/ greek/bold/ greek/thin/", "greek latin", {"": 12}),
    "a training folder alone": ("train/a/ train/b/", "a b", {"train": 6}),
    "a class called test": ("test/ exam/", "exam test", {"": 6}),
    "a class called train": ("train/ bus/ car/", "bus car train", {"": 9}),
    "class names that hold such words": (
        "trainer/ test_tube/ valley/ masked_man/ predator/ label_maker/",
        "label_maker masked_man predator test_tube trainer valley",
        {"": 18},
    ),
    "class names with a split's word each": (
        "train_station/ test_station/ airport/",
        "airport test_station train_station",
        {"": 9},
    ),
    "masks that are worn": (
        "with_mask/ without_mask/ mask_incorrect/",
        "mask_incorrect with_mask without_mask",
        {"": 9},
    ),
    "numbers as classes": ("0/ 1/ 2/", "0 1 2", {"": 9}),
    "views inside the classes": ("a/left/ a/right/ b/left/ b/right/", "a b", {"": 12}),
    "letters of both cases": ("a/ A/ b/", "A a b", {"": 9}),
    "many classes with one image": (
        " ".join(f"{chr(97 + k)}x/1.png" for k in range(24)),
        " ".join(f"{chr(97 + k)}x" for k in range(24)),
        {"": 24},
    ),
    "cars among which one is a GT": ("Ford_GT/ Audi_TT/ Ford_GT/x1.png Audi_TT/x1.png", "Audi_TT Ford_GT", {"": 8}),
    "scans and photos": ("scans/ photos/", "photos scans", {"": 6}),
    "photos and masks among other classes": ("photo/ mask/ hat/", "hat mask photo", {"": 9}),
    "machine parts": ("part1/ part2/ part3/", "part1 part2 part3", {"": 9}),
    "notes beside the classes": ("a/ b/ readme.txt:x data.json:{}", "a b", {"": 6}),
    "a table of other things beside the classes": ("a/ b/ sizes.csv:class,size|a,1|b,2", "a b", {"": 6}),
    "folders of images inside the classes": ("a/images/ b/images/", "a b", {"": 6}),
    "labels of other tools inside the classes": ("a/ a/0.json:{} b/ b/0.json:{}", "a b", {"": 6}),
    "a class whose images are called test": ("a/test.png a/1.png b/test_2.png b/train_1.png", "a b", {"": 4}),
    # splits
    "composite names": ("seg_train/a/ seg_train/b/ seg_test/a/ seg_test/b/", "a b", {"train": 6, "test": 6}),
    "repeated names, unlabelled beside": (
        "x_train/x_train/a/ x_train/x_train/b/ x_test/x_test/a/ x_test/x_test/b/ x_pred/x_pred/",
        "a b",
        {"train": 6, "test": 6},
    ),
    "names in two words": ("Training~Set/a/ Training~Set/b/ Test~Set/a/ Test~Set/b/", "a b", {"train": 6, "test": 6}),
    "numbered names": ("1_train/a/ 1_train/b/ 2_val/a/ 3_test/b/", "a b", {"train": 6, "val": 3, "test": 3}),
    "words behind": ("images_train/a/ images_train/b/ images_test/a/", "a b", {"train": 6, "test": 3}),
    "camel case": ("TrainImages/a/ TrainImages/b/ TestImages/a/", "a b", {"train": 6, "test": 3}),
    "years": ("train2017/a/ train2017/b/ val2017/a/", "a b", {"train": 6, "val": 3}),
    "evaluation as a test": (
        "training/a/ training/b/ validation/a/ evaluation/b/",
        "a b",
        {"train": 6, "val": 3, "test": 3},
    ),
    "an unlabelled test": ("train/a/ train/b/ test/", "a b", {"train": 6}),
    "an unlabelled test in a folder of its own": ("train/a/ train/b/ test/unknown/", "a b", {"train": 6}),
    "images inside the splits": ("train/images/a/ train/images/b/ test/images/a/", "a b", {"train": 6, "test": 3}),
    "splits below the classes": ("a/train/ a/test/ b/train/ b/test/", "a b", {"train": 6, "test": 6}),
    "composite splits below the classes": ("a/a_train/ a/a_test/ b/b_train/ b/b_test/", "a b", {"train": 6, "test": 6}),
    # wrappers
    "one folder around the classes": ("dataset/a/ dataset/b/", "a b", {"": 6}),
    "one folder around the splits": (
        "dataset/train/a/ dataset/train/b/ dataset/test/a/",
        "a b",
        {"train": 6, "test": 3},
    ),
    "two folders around it": ("archive/set/a/ archive/set/b/", "a b", {"": 6}),
    "documents beside the one folder": ("images/001.a/ images/002.b/ parts/x.txt:1 x.txt:1", "001.a 002.b", {"": 6}),
    "the classes once more": ("yes/ no/ dataset/yes/ dataset/no/", "no yes", {"": 6}),
    "the classes once more under their own name": (
        "cells/a/ cells/b/ cells/cells/a/ cells/cells/b/",
        "a b",
        {"": 6},
    ),
    "years as classes": ("2019/ 2020/ 2021/", "2019 2020 2021", {"": 9}),
    "views of numbered classes": ("1/left/ 1/right/ 2/left/ 2/right/", "1 2", {"": 12}),
    "three views": ("a/front/ a/side/ a/back/ b/front/ b/side/ b/back/", "a b", {"": 18}),
    # masks
    "folders of images and masks": ("a/images/ a/masks/ b/images/ b/masks/", "a b", {"": 6}),
    "folders of masks of two kinds": (
        "a/images/ a/lung~masks/ a/infection~masks/ b/images/ b/lung~masks/",
        "a b",
        {"": 6},
    ),
    "masks inside the class": ("a/ a/masks/ b/ b/masks/", "a b", {"": 6}),
    "masks beside their images": (
        " ".join(f"{c}/{k}.png {c}/{k}_mask.png" for c in "ab" for k in range(3)),
        "a b",
        {"": 6},
    ),
    "masks as another set has them": (
        " ".join(f"{c}/x~({k}).png {c}/x~({k})_mask.png {c}/x~({k})_mask_1.png" for c in "ab" for k in range(3)),
        "a b",
        {"": 6},
    ),
    "segmentations beside their images": (
        " ".join(f"{c}/I{k}.jpg {c}/I{k}_segmentation.png" for c in "ab" for k in range(3)),
        "a b",
        {"": 6},
    ),
    "overlays beside their images": (
        " ".join(f"{c}/I{k}.jpg {c}/I{k}_overlay.png" for c in "ab" for k in range(3)),
        "a b",
        {"": 6},
    ),
    "masks in German": ("a/Bilder/ a/Masken/ b/Bilder/ b/Masken/", "a b", {"": 6}),
    "masks by a word before": (
        " ".join(f"{c}/image_{k}.png {c}/mask_{k}.png" for c in "ab" for k in range(3)),
        "a b",
        {"": 6},
    ),
    "masks in a tree of their own": ("images/a/ images/b/ masks/a/ masks/b/", "a b", {"": 6}),
    "one name that looks like a mask's": ("a/ a/x.png a/x_mask.png b/", "a b", {"": 8}),
    "segmentations beside the folder around the images": (
        "set/images/1.a/x.png set/images/2.b/z.png segmentations/1.a/x.png segmentations/2.b/z.jpg",
        "1.a 2.b",
        {"": 2},
    ),
    # tables
    "a table in each split": (
        " ".join(
            f"{s}/ {s}/metadata.csv:file_name,label|0.png,x|1.png,y|2.png,x" for s in ("train", "validation", "test")
        ),
        "x y",
        {"train": 3, "val": 3, "test": 3},
    ),
    "a table in the training split alone": (
        "train/ train/labels.csv:path,label|0.png,x|1.png,y|2.png,x test/",
        "x y",
        {"": 3},
    ),
    "a table whose paths have the splits": (
        "train/ test/ metadata.csv:file_name,label|train/0.png,x|train/1.png,y|test/2.png,x",
        "x y",
        {"train": 2, "test": 1},
    ),
    "a table of all beside those of the splits": (
        "img/ img/3.png full.csv:id,label|0,x|1,y|2,x|3,y train.csv:id,label|0,x|1,y test.csv:id,label|2,x|3,y",
        "x y",
        {"train": 2, "test": 2},
    ),
    "a competition": (
        "train_images/ test_images/ train.csv:id_code,diagnosis|0,2|1,3|2,2 test.csv:id_code|0|1|2",
        "2 3",
        {"": 3},
    ),
    "tables of splits": (
        (
            "img/ img/4.png img/5.png img/6.png train.csv:path,label|img/0.png,x|img/1.png,y "
            "val.csv:Path,Label|img/2.png,x|img/4.png,y test.csv:label,path|x,img/5.png|y,img/6.png"
        ),
        "x y",
        {"train": 2, "val": 2, "test": 2},
    ),
    "tables of splits, of which one has no labels and another no images": (
        "img/ train_labels.csv:id,label|0,x|1,y valid_labels.csv:id,label|8,x|9,y test_labels.csv:id,label|2,|1,",
        "x y",
        {"": 2},
    ),
    "tables of splits, of which one has dummies": (
        "img/ img/4.png train.csv:id,a,b|0,1,0|1,0,1 dev.csv:id,a,b|2,1,0|4,0,1 test.csv:id,a,b|0,0,0|1,0,0",
        "a b",
        {"train": 2, "val": 2},
    ),
    "tables of splits with folders of the same names": (
        "train/ test/ train.csv:id,label|0,x|1,y|2,x test.csv:id,label|0,x|1,y",
        "x y",
        {"train": 3, "test": 2},
    ),
    "tables of splits that name studies": (
        (
            "set/train/XR/p1/ set/train/XR/p2/ set/val/XR/p3/ set/val/XR/p4/ "
            "set/train_studies.csv:set/train/XR/p1/,x|set/train/XR/p2/,y "
            "set/val_studies.csv:set/val/XR/p3/,x|set/val/XR/p4/,y"
        ),
        "x y",
        {"train": 6, "val": 6},
    ),
    "tables of splits around class folders": (
        (
            "images/a/ images/b/ train.csv:path,label|a/0.png,a|a/1.png,a|b/0.png,b|b/1.png,b "
            "test.csv:path,label|a/2.png,a|b/2.png,b"
        ),
        "a b",
        {"train": 4, "test": 2},
    ),
    "folders of documents beside the classes": (
        "cats/ dogs/ annotations/a.xml:x annotations/b.xml:x docs/readme.md:x",
        "cats dogs",
        {"": 6},
    ),
    "a table around the folders of splits": (
        "jpeg/train/ jpeg/test/x.png train.csv:image_name,target|0,a|1,b|2,a",
        "a b",
        {"": 3},
    ),
    "a table of labels beside one folder": (
        "pictures_of_2020/ t.csv:file,cat,dog|0.png,1,1|1.png,1,0|2.png,0,1",
        "cat dog",
        {"": 3},
    ),
    "a table that names splits beside one of attributes": (
        (
            "img/0.png img/1.png img/2.png img/3.png attributes.csv:image_id,cat,dog|0,1,0|1,0,1|2,1,1|3,0,1 "
            "partition.csv:image_id,partition|0,0|1,0|2,1|3,2"
        ),
        "cat dog",
        {"train": 2, "val": 1, "test": 1},
    ),
    "a table beside one folder of images": ("images/ labels.csv:file,label|0.png,x|1.png,y|2.png,x", "x y", {"": 3}),
    "a table that says the folders' classes": ("a/ b/ t.csv:path,label|a/0.png,0|b/0.png,1", "a b", {"": 6}),
    "masks of another form beside a folder of images": (
        "images/a/x_1.png images/b/y_1.png annotations/trimaps/x_1.png annotations/trimaps/y_1.png annotations/t.txt:1",
        "a b",
        {"": 2},
    ),
    "a table that says the patients too": (
        "a/ b/ t.csv:path,label,patient|" + "|".join(f"{c}/{k}.png,{c},p{k}" for c in "ab" for k in range(3)),
        "a b",
        {"": 6},
    ),
}

# files, and a part of the message
AMBIGUOUS = {
    "splits without classes": ("train/ test/", "without a folder for each class"),
    "composite splits without classes": (
        "train_images/ test_images/",
        "test_images, train_images are folders of splits",
    ),
    "splits without classes, a table without them": ("train_images/ test_images/ train.csv:id,x|0,1", "train.csv"),
    "two tables": (
        "images/ a.csv:path,label|images/0.png,x|images/1.png,y b.csv:path,label|images/0.png,x|images/2.png,y",
        "a.csv, b.csv each name classes",
    ),
    "tables of splits with a wrong row": (
        "img/ train.csv:path,label|img/0.png,x|img/1.png,y val.csv:path,label|img/2.png,x|img/1.png,z",
        r"\(train.csv \+ val.csv cannot be used: .* with another label or split in 1 row: line 3 of val.csv\)",
    ),
    "two tables of one split": (
        "img/ train.csv:path,label|img/0.png,x val.csv:path,label|img/1.png,x dev.csv:path,label|img/2.png,y",
        "dev.csv, train.csv, val.csv each name classes",
    ),
    "a table that contradicts the folders": (
        "site1/ site2/ t.csv:path,label|site1/0.png,x|site1/1.png,y|site2/0.png,x",
        "give the images different classes",
    ),
    "patients by a table": (
        "train_images/10/ train_images/11/ train.csv:image_id,patient|"
        + "|".join(f"train_images/{p}/{k}.png,{p}" for p in (10, 11) for k in range(3)),
        r"the folders \(10, 11\) are the groups of train.csv \(column 'patient'\)",
    ),
    "patients by a table of patients": (
        "sub-01/ sub-02/ participants.tsv:participant_id,age|sub-01,60|sub-02,61|sub-03,70",
        r"the folders \(sub-01, sub-02\) are the groups of participants.tsv \(column 'participant_id'\)",
    ),
    "a folder for each image": (" ".join(f"1.{k}/x.png" for k in range(24)), "24 images are too many for classes"),
    "a training folder beside one of tables": (
        "train/ annotations/labels.csv:path,label|0.png,x",
        "train is a folder of a split without",
    ),
    "columns that could be labels, beside one folder": (
        "faces/ t.csv:file,gender,race|0.png,m,x|1.png,f,y|2.png,m,x|3.png,f,x faces/3.png",
        r"has one class only \('faces'\) \(t.csv cannot be used: .* no column for the labels",
    ),
    "folders and images in a table": (
        "a/1/ a/2/ t.csv:path,label|a/1,x|a/2/0.png,y",
        "t.csv has a folder in place of a file in 1 row: a/1",
    ),
    "masks with the names of the images": (
        "CXR_png/c1.png CXR_png/c2.png ManualMask/left/c1.png ManualMask/left/c2.png ManualMask/right/c2.png",
        "'ManualMask' has files with the names of those in 'CXR_png'",
    ),
    "a spreadsheet": ("img/ labels.xlsx:PK\3\4", r"labels\.xlsx cannot be used: .*labels\.xlsx .*spreadsheet"),
    "images with a text each": ("1.png 1.txt:x 2.png 2.txt:x 3.png 3.txt:x", "txt files are not read"),
    "names of no classes among others": (
        "Original~Images/ TestSet/ Patches/Normal/ Patches/Ulcer/",
        "Original Images, TestSet do not look like classes",
    ),
    "two trainings": ("train_images/ train_thumbnails/", "look like splits or parts of one"),
    "lettered splits": ("a.~Training~Set/ b.~Testing~Set/", "look like splits or parts of one"),
    "lettered splits with classes": ("a_training/x/ a_training/y/ b_testing/x/ b_testing/y/", "look like splits"),
    "products with images and masks inside": (
        "cap/Data/Images/good/ cap/Data/Masks/bad/00.png nut/Data/Images/good/",
        "look like images and their masks",
    ),
    "findings deep inside products": (
        "cap/Data/Images/Normal/ cap/Data/Images/Anomaly/ nut/Data/Images/Normal/ nut/Data/Images/Anomaly/",
        "the same folders \\(Anomaly, Normal\\)",
    ),
    "findings below dates": (
        "line1/2024-05-03/ok/ line1/2024-05-03/nok/ line2/2024-05-03/ok/ line2/2024-05-04/ok/",
        r"line1, line2 each have folders for findings \(nok, ok\), .* --label-from '/\(nok\|ok\)/' reads them",
    ),
    "a single split without classes": ("train/ train.jsonl:{}", "train is a folder of a split without"),
    "parts of one set": ("HAM_images_part_1/ HAM_images_part_2/", "look like parts of one set"),
    "folds": ("fold1/a/ fold1/b/ fold2/a/ fold2/b/", "look like fold numbers"),
    "patients as folders": ("patient0001/study1/ patient0002/study1/", "look like patient numbers"),
    "patients in a split": ("train/patient0001/s1/ train/patient0002/s1/", "look like patient numbers"),
    "dates": (
        "2023-05-01/ 2023-05-08/",
        r"look like dates, .* --label-from '\^\(\[\^/\]\+\)/' reads them as the classes",
    ),
    "dates of another form, in a split": ("train/1.5.2023/ train/8.5.2023/", "look like dates"),
    "patients of BIDS": ("sub-01/ sub-02/ sub-03/", "look like patients or studies"),
    "clips": ("clip_01/ clip_02/ clip_03/", "look like clip numbers"),
    "batches with classes in the names": ("batch1/ok_1.png batch2/nok_1.png", "look like batch numbers"),
    "classes inside numbered patients": ("10253/0/ 10253/1/ 10254/0/ 10254/1/", "the same folders \\(0, 1\\)"),
    "classes under their letters": ("a/abbey/ a/airport/ b/beach/", "begin with the same letter"),
    "classes inside sites": (
        "hamburg/NORMAL/ hamburg/SICK/ berlin/NORMAL/ berlin/SICK/",
        "same folders \\(NORMAL, SICK\\)",
    ),
    "classes inside products": ("bottle/ok/ bottle/scratch/ cap/ok/ cap/scratch/", "same folders \\(ok, scratch\\)"),
    "classes inside variants": ("color/a/ color/b/ grayscale/a/ grayscale/b/", "the same folders \\(a, b\\)"),
    "classes inside sets": (
        "Original~Images/a/ Original~Images/b/ Augmented~Images/a/ Augmented~Images/b/",
        "the same folders \\(a, b\\)",
    ),
    "many classes inside two sites": (
        " ".join(f"{site}/{c}/" for site in ("north", "south") for c in "abcde"),
        "the same folders \\(a, b, c, d, e\\)",
    ),
    "splits inside sites": (
        " ".join(f"{site}/{split}/{c}/" for site in ("site1", "site2") for split in ("train", "test") for c in "ab"),
        "the same folders \\(a, b\\)",
    ),
    "splits in some classes": ("a/train/ a/test/ b/", "has none"),
    "splits deeper": ("a/x/train/ a/x/test/ b/x/", "inside the class 'a'"),
    "two sets of splits": (
        "red_train/a/ red_train/b/ red_test/a/ blue_train/a/ blue_train/b/ blue_test/a/",
        "two sets",
    ),
    "splits and other folders": ("s_train/a/ s_train/b/ s_test/a/ other/a/", "lies beside them"),
    "splits of unknown names": ("train/a/ train/b/ public_test/a/ private_test/b/", "public_test look like splits"),
    "a slip of the pen": ("trian/a/ trian/b/ valid/a/ valid/b/", "trian look like splits: .* same folders as valid"),
    "a test folder alone": ("test/a/ test/b/", "nothing to train on"),
    "images alone": ("images/", "the only folder with images"),
    "images and masks alone": ("images/ masks/", "the only folder with images"),
    "images and masks that are not paired": ("images/ masks/x.png masks/y.png", "look like images and their masks"),
    "masks that are paired in part": ("a/images/ a/masks/0.png a/masks/x.png b/images/", "only 1 of 2 images has"),
    "YOLO": ("images/ labels/0.txt:0 labels/1.txt:0 labels/2.txt:0", "detection"),
    "YOLO with splits": (
        "images/train/ images/val/ labels/train/0.txt:0 labels/train/1.txt:0 labels/val/0.txt:0",
        "detection",
    ),
    "YOLO inside the splits": (
        "train/images/ train/labels/0.txt:0 train/labels/1.txt:0 valid/images/ valid/labels/0.txt:0",
        "detection",
    ),
    "COCO": ("train2017/ val2017/ annotations/instances.json:{}", "detection"),
    "COCO in each split": (
        "train/ train/_annotations.coco.json:{} valid/ valid/_annotations.coco.json:{}",
        "detection",
    ),
    "VOC in its folders": (
        "VOCdevkit/VOC2007/JPEGImages/ VOCdevkit/VOC2007/ImageSets/train.txt:x",
        "'JPEGImages' is the",
    ),
    "one folder whose file names have the classes": (
        " ".join(f"set_of_2020/{c}_{k}.png" for c in "ab" for k in range(9)),
        r"one class only .* or --label-from '.+' if the file names have the class",
    ),
    "numbered folders of images that a table gives labels": (
        "0/ 1/ t.csv:path,a,b|" + "|".join(f"{c}/{k}.png,{int(k > 0)},1" for c in "01" for k in range(3)),
        r"has folders \(0, 1\) and a table \(t.csv: a, b\) that may both name classes\. Give the table itself",
    ),
    "a packed table": ("train/ test/ labels.csv.zip:x", r"labels\.csv\.zip is not opened: unpack it"),
    "VOC": ("JPEGImages/ Annotations/0.xml:x Annotations/1.xml:x Annotations/2.xml:x SegmentationClass/", "detection"),
    "one class, or patients": ("NORMAL/p1/ NORMAL/p2/ NORMAL/p3/", "one class only"),
    "one class": ("a/", "one class only"),
}


@pytest.mark.parametrize("case", RECOGNISED)
def test_layout_is_recognised(case: str, tmp_path: Path, image: Path) -> None:
    words, classes, splits = RECOGNISED[case]
    index = scan_folder(make(tmp_path / "data", words, image))
    check_trainable(index)
    assert index.classes == tuple(classes.split())
    assert {split: index.splits.count(split) for split in set(index.splits)} == splits
    assert all((index.root / path).is_file() for path in index.paths)
    total = len(list((tmp_path / "data").rglob("*.*g")))
    accounted = sum(count for reason, count in index.skipped.items() if reason.startswith(("image ", "mask ")))
    assert len(index) + accounted == total


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_layout_is_refused(case: str, tmp_path: Path, image: Path) -> None:
    words, message = AMBIGUOUS[case]
    make(tmp_path / "data", words, image)
    with pytest.raises(DataError, match=message) as caught:
        check_trainable(scan_folder(tmp_path / "data"))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", [*RECOGNISED, *AMBIGUOUS])
def test_folder_and_its_zip_file_give_the_same_index(case: str, tmp_path: Path, image: Path) -> None:
    words = (RECOGNISED | AMBIGUOUS)[case][0]
    folder = make(tmp_path / "data", words, image, number=2 if case in RECOGNISED and "mask" not in case else 3)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, path.relative_to(folder))
    outcomes: list[object] = []
    for data in (folder, tmp_path / "data.zip"):
        try:
            index = scan_data(data)
        except DataError as error:
            outcomes.append(re.sub(r"\S*[/]\S*|data(\.zip)?", "", error.problem))
        else:
            outcomes.append((index.classes, index.labels, index.splits, index.skipped))
    assert outcomes[0] == outcomes[1]


def test_error_names_the_table(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "train/ test/ train/x/labels.csv:path,label|../0.png,x|../1.png,y", image)
    with pytest.raises(DataError) as caught:
        scan_folder(data)
    assert f"Give the table itself, such as {data}/train/x/labels.csv" in caught.value.remedy
    assert scan_data(data / "train/x/labels.csv").classes == ("x", "y")


def test_known_classes_are_not_questioned(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", AMBIGUOUS["one class, or patients"][0], image)
    assert scan_folder(data, table_options=TableOptions(known_labels=("NORMAL", "SICK"))).classes == ("NORMAL",)
    data = make(tmp_path / "words", "images/ masks/x.png", image)
    options = TableOptions(known_labels=("images", "masks"))
    assert scan_folder(data, table_options=options).classes == ("images", "masks")


def test_notes_name_the_source_of_the_classes(tmp_path: Path, image: Path) -> None:
    index = scan_folder(make(tmp_path / "data", RECOGNISED["repeated names, unlabelled beside"][0], image))
    assert index.notes == (
        "the classes of the test split are the folders in x_test/x_test",
        "the classes of the train split are the folders in x_train/x_train",
        "splits by the names of folders: x_pred, x_test, x_train",
    )
    assert index.skipped == {"image without a class, in 'x_pred'": 3}
    index = scan_folder(make(tmp_path / "comp", RECOGNISED["a competition"][0], image))
    assert index.paths == ("train_images/0.png", "train_images/1.png", "train_images/2.png")
    assert index.notes[0] == "the classes are those of train.csv"
    index = scan_folder(make(tmp_path / "wrapped", RECOGNISED["one folder around the splits"][0], image))
    assert index.notes == ("the classes and splits are the folders in dataset",)
    index = scan_folder(make(tmp_path / "plants", "oak/x/ oak/y/ oak/z/ elm/x/ elm/y/ elm/z/", image))
    assert "have the same folders (x, y, z)" in index.notes[0]
    index = scan_folder(make(tmp_path / "foreign", "opetus/x/ opetus/y/ koe/x/ koe/y/", image))
    assert "have the same folders (x, y): if those are the classes, name the outer folders train" in index.notes[0]
    index = scan_folder(make(tmp_path / "organs", "colon/c_aca/ colon/c_n/ lung/l_aca/ lung/l_n/", image))
    assert index.classes == ("colon", "lung")
    assert index.notes == ("folders inside the classes are parts of them, not classes: c_aca, c_n, l_aca, l_n",)
    (tmp_path / "birds" / "parts").mkdir(parents=True)
    assert scan_folder(make(tmp_path / "birds", "images/a/ images/b/", image)).classes == ("a", "b")
    index = scan_folder(make(tmp_path / "copy", "yes/ no/ data/yes/ data/no/", image))
    assert index.skipped == {"image in a folder that repeats the classes ('data')": 6}


def test_images_that_differ_in_the_suffix_alone_are_reported(tmp_path: Path, image: Path) -> None:
    index = scan_folder(make(tmp_path, "a/0.jpg a/0.png a/1.jpg a/1.png b/2.jpg b/2.png b/3.png", image))
    [note] = index.notes
    assert "3 pairs of images differ in the suffix alone (as 0.jpg and 0.png)" in note
    assert "--exclude '*.png'" in note


def test_submission_form_is_not_a_table_of_labels(tmp_path: Path, image: Path) -> None:
    form = "sample_submission.csv:id_code,diagnosis|0,0|1,1|2,1"
    index = scan_folder(make(tmp_path / "both", f"{RECOGNISED['a competition'][0]} {form}", image))
    assert index.classes == ("2", "3")
    assert index.notes[1] == "sample_submission.csv not used: a submission form has no true labels"
    with pytest.raises(DataError, match="folders of splits without a folder for each class"):
        scan_folder(make(tmp_path / "form", f"train_images/ test_images/ {form}", image))


def test_example_is_the_table_of_training_images(tmp_path: Path, image: Path) -> None:
    text = "path,label|images/0.png,x|images/1.png,y"
    with pytest.raises(DataError) as caught:
        scan_folder(make(tmp_path, f"images/ a_test.csv:{text}|images/2.png,x b_train.csv:{text}", image))
    assert f"such as {tmp_path / 'b_train.csv'}" in (caught.value.remedy or "")


def test_example_is_the_table_of_most_images_and_no_submission_form(tmp_path: Path, image: Path) -> None:
    two, three = "Index,Label|0,x|1,y", "Index,Label|0,x|1,y|2,y"
    with pytest.raises(DataError) as caught:
        scan_folder(make(tmp_path / "data", f"images_1/ images_2/4.png boxes.csv:{two} data.csv:{three}", image))
    assert f"such as {tmp_path / 'data/data.csv'}" in caught.value.remedy
    with pytest.raises(DataError) as caught:
        scan_folder(make(tmp_path / "form", f"train/ test/ sampleSubmission.csv:{two}", image))
    assert "Submission" not in str(caught.value)


def test_images_of_the_table_are_not_skipped(tmp_path: Path, image: Path) -> None:
    index = scan_folder(make(tmp_path, "0.png 1.png 2.png metadata.csv:file_name,label|0.png,x|1.png,y", image))
    assert index.skipped == {"image without a row in metadata.csv": 1}


def test_remedy_is_that_of_the_only_table(tmp_path: Path, image: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv cannot be used: .* has no label .* in 1 row") as caught:
        scan_folder(make(tmp_path, "images/ t.csv:file,label|0.png,x|1.png,|2.png,y", image))
    assert caught.value.remedy == "Correct or remove these rows"


def test_table_without_labels_adds_groups(tmp_path: Path, image: Path) -> None:
    rows = "|".join(f"set/{c}/{k}.png,{'' if c + str(k) == 'b2' else f'p{k}'}" for c in "ab" for k in range(3))
    files = f"set/a/ set/b/ sizes.csv:class,size|a,1 meta.csv:file,patient_id|{rows}"
    index = scan_folder(make(tmp_path / "data", files, image))
    assert index.groups == ("p0", "p1", "p2", "p0", "p1", "set/b/2.png")
    assert index.notes[-2:] == (
        "groups by column 'patient_id' of meta.csv, which 1 of 6 images lacks",
        "tables that are not used: sizes.csv",
    )
    truth = "truth.csv:image,MEL,NV,BCC|0,1,0,0|1,0,1,0|2,0,0,1 meta.csv:image,patient|0,k|1,k|2,m"
    index = scan_folder(make(tmp_path / "isic", f"Input/ {truth}", image))
    assert (index.classes, index.groups) == (("BCC", "MEL", "NV"), ("k", "k", "m"))
    index = scan_data(tmp_path / "isic/truth.csv", table_options=TableOptions(label_columns="MEL,NV,BCC"))
    assert (index.groups, index.notes[-1]) == (("k", "k", "m"), "groups by column 'patient' of meta.csv")
    assert scan_data(tmp_path / "isic/truth.csv", table_options=TableOptions(group_column="none")).groups == ()
    assert scan_data(tmp_path / "isic", table_options=TableOptions(task="multilabel")).groups == ("k", "k", "m")


def test_a_table_beside_class_folders_is_read_once(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def count(path: Path, remedy: str) -> tuple[str, str]:
        read.append(path.name)
        return read_text(path, remedy)

    monkeypatch.setattr("convnext_cli.data.tables.table.read_text", count)
    data = make(tmp_path / "data", "cat/ dog/ meta.csv:file,label,patient|cat/0.png,cat,p|dog/0.png,dog,p", image)
    assert scan_folder(data).notes == ("groups by column 'patient' of meta.csv, which 4 of 6 images lack",)
    assert read == ["meta.csv"]


def test_table_without_labels_adds_splits(tmp_path: Path, image: Path) -> None:
    words = [["train", "train", "val"], ["train", "test", ""]]
    rows = "|".join(
        f"{c}/{k}.png,{word},p{k}" for c, cells in zip("ab", words, strict=True) for k, word in enumerate(cells)
    )
    data = make(tmp_path / "data", f"a/ b/ meta.csv:file,split,patient|{rows}", image)
    index = scan_data(data)
    assert index.splits == ("train", "train", "val", "train", "test", "")
    assert index.notes == (
        "groups by column 'patient' of meta.csv",
        "splits by column 'split' of meta.csv, which 1 of 6 images lacks; images without one can be training images",
    )
    few = make(tmp_path / "few", "a/ b/ meta.csv:file,split|a/0.png,train|b/0.png,test", image)
    assert (scan_data(few).splits, scan_data(few).notes) == (("",) * 6, ("tables that are not used: meta.csv",))
    assert scan_data(data, table_options=TableOptions(split_column="none")).splits == ("",) * 6
    (data / "meta.csv").write_text((data / "meta.csv").read_text().replace("val", "early"))
    assert scan_data(data).splits == ("",) * 6  # an unknown word
    official = make(tmp_path / "official", f"train/a/ test/a/ train/b/ meta.csv:file,split|{rows}", image)
    assert {*scan_data(official).splits} == {"train", "test"}
    assert "tables that are not used: meta.csv" in scan_data(official).notes


def test_numbers_of_splits_beside_a_table_are_read_as_in_celeba(tmp_path: Path, image: Path) -> None:
    tables = "list_attr.csv:image_id,cat,dog|0.png,1,-1|1.png,1,1|2.png,-1,1 "
    tables += "list_eval_partition.csv:image_id,partition|0.png,0|1.png,1|2.png,2"
    index = scan_data(make(tmp_path, f"img/img/ {tables}", image) / "list_attr.csv")
    assert (index.classes, index.splits) == (("cat", "dog"), ("train", "val", "test"))
    assert "splits by column 'partition' of list_eval_partition.csv" in index.notes


def test_one_patient_per_class_is_no_error_in_small_data_nor_in_an_evaluation(tmp_path: Path, image: Path) -> None:
    table = "meta.csv:file,patient|" + "|".join(f"{c}/{k}.png,p{c}" for c in "abc" for k in range(3))
    index = scan_folder(make(tmp_path / "two", f"a/ b/ {table[: table.index('c/0') - 1]}", image))
    assert set(index.groups) == {"pa", "pb"}
    data = make(tmp_path / "three", f"a/ b/ c/ {table}", image)
    with pytest.raises(DataError, match="are the groups of meta"):
        scan_data(data)
    assert set(scan_data(data, table_options=TableOptions(known_labels=("a", "b", "c"))).groups) == {"pa", "pb", "pc"}


def test_links_and_pipes_called_tables_or_lists_are_passed_over(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "a/ b/ table.csv:path,label|a/0.png,a|b/0.png,b", image)
    (data / "gone.csv").symlink_to("nowhere")
    (data / "test.txt").symlink_to("/dev/zero")
    for name in ("pipe.csv", "train.txt"):
        os.mkfifo(data / name)
    for source, notes in ((data, ("tables that are not used: table.csv",)), (data / "table.csv", ())):
        index = scan_data(source)
        assert (set(index.splits) <= {""}, index.notes) == (True, notes)
    with pytest.raises(DataError, match=r"pipe\.csv is a pipe, a socket or a device, not a folder"):
        scan_data(data / "pipe.csv")


def test_column_of_the_classes_called_group_is_none_of_groups(tmp_path: Path, image: Path) -> None:
    rows = "|".join(f"{c}/{k}.png,{c}" for c in ("control", "treated") for k in range(3))
    index = scan_folder(make(tmp_path, f"control/ treated/ meta.csv:file,group|{rows}", image))
    assert (index.classes, index.groups) == (("control", "treated"), ())
    assert index.notes == ("tables that are not used: meta.csv",)


def test_single_folder_of_a_known_class_needs_no_table(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "SICK/ ages.csv:file,age|0.png,40|1.png,50|2.png,61", image)
    options = TableOptions(known_labels=("NORMAL", "SICK"))
    assert scan_data(data, table_options=options).classes == ("SICK",)


def test_tables_and_findings_in_the_classes_are_noted(tmp_path: Path, image: Path) -> None:
    index = scan_folder(make(tmp_path / "messidor", "Base11/ Base11/A11.xls:x Base12/ Base12/A12.xls:x", image))
    note, _ = index.notes
    assert note.startswith(
        "all classes have a table beside their images (as A11.xls): if these tables name the classes"
    )
    deep = " ".join(
        f"{part}/p{k}/study1_{sign}/" for part in ("HAND", "HIP") for k in (1, 2) for sign in ("positive", "negative")
    )
    [note] = scan_folder(make(tmp_path / "mura", deep, image)).notes
    assert note.startswith("names inside every class are those of findings (negative, positive)")
    [note] = scan_folder(make(tmp_path / "bids", "sub-01/ sub-02/", image)).notes
    assert note.startswith("the classes (sub-01, sub-02) are numbered: if")
    [note] = scan_folder(make(tmp_path / "bach", "Photos/Benign/ Photos/Normal/ WSI/", image)).notes
    assert note == "folders inside the classes are parts of them, not classes: Benign, Normal"


def test_files_that_hold_many_images_are_named(tmp_path: Path, image: Path) -> None:
    for name, kinds in (("a/1.nii.gz b/2.nii.gz", ".nii.gz"), ("x.h5 y.npz", ".h5 and .npz"), ("train.zip", ".zip")):
        words = " ".join(f"{word}:x" for word in name.split())
        with pytest.raises(DataError, match=rf"Its {re.escape(kinds)} files are not opened: unpack them"):
            scan_folder(make(tmp_path / name[:3], words, image))


def test_archives_beside_classes_are_noted(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "cat/ dog/ cat.zip:x owl.ZIP:x sets/old.tar.gz:x", image)
    note = "archives that are not opened: old.tar.gz, owl.ZIP; if they hold images, unpack them"
    assert scan_folder(data).notes == (note,)
    assert note in scan_folder(data, table_options=TableOptions(label_from="cat|dog")).notes


@pytest.mark.parametrize(
    ("name", "command"),
    [("a.tgz", "tar -xf"), ("my a.tar.gz", "tar -xf"), ("a.7z", "7z x"), ("t.csv.gz", "gunzip"), ("a.tar", "tar -xf")],
)
def test_packed_data_have_the_command_that_unpacks_them(tmp_path: Path, name: str, command: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match="only zip files are unpacked") as caught:
        scan_data(tmp_path / name)
    assert caught.value.remedy == f"Run: {command} {shlex.quote(str(tmp_path / name))}"


@pytest.mark.parametrize("name", ["a.tgz", "a.zip"])
def test_packed_data_that_are_missing_are_not_to_be_unpacked(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        scan_data(tmp_path / name)


def test_masks_are_no_images_of_label_from(tmp_path: Path, image: Path) -> None:
    names = [f"{c}_{k}" for c in ("cat", "dog") for k in range(4)]
    words = " ".join(f"images/{name}.png annotations/trimaps/{name}.png" for name in names)
    data = make(tmp_path, words, image)
    (data / "annotations/trainval.txt").write_text("".join(f"{name} 1\n" for name in names if name[-1] != "3"))
    (data / "annotations/test.txt").write_text("cat_3 1\ndog_3 2\n")
    for exclude in ("none", "annotations"):
        index = scan_data(data, exclude=exclude, table_options=TableOptions(label_from="cat|dog"))
        assert index.paths == tuple(f"images/{name}.png" for name in names)
        assert index.splits == ("train", "train", "train", "test") * 2


def test_masks_of_their_own_folders_are_refused_with_label_from(tmp_path: Path, image: Path) -> None:
    names = [f"c{k}_{k % 2}" for k in range(6)]
    words = " ".join(f"set/CXR_png/{name}.png set/ManualMask/left/{name}.png" for name in names)
    options = TableOptions(label_from=r"_(\d)\.png")
    with pytest.raises(DataError, match="Leave the masks out with --exclude ManualMask"):
        scan_data(make(tmp_path, words, image), table_options=options)
    assert len(scan_data(tmp_path, exclude="ManualMask", table_options=options)) == 6


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("day3/ day5/", r"\(day3, day5\) are numbered: if the model is not to learn these"),
        ("Woche~1/ Woche~2/", r"\(Woche 1, Woche 2\) are numbered"),
        ("kos01/ kos02/ kos03/", "are numbered"),
        ("p10/p10000032/ p11/p11000011/", "are numbered"),
        ("A01/ A02/ A03/ B01/ B02/ B03/", "are named as wells of a plate are"),
        ("left/ right/", "are named as views of one subject are"),
        (
            "Bonn/ok_1.png Bonn/nok_2.png Ulm/ok_1.png Ulm/nok_3.png",
            r"those of findings \(nok, ok\): .*'\(\?i\)nok\|ok' reads",
        ),
        (
            " ".join(f"Class{c}/{n}.png Class{c}/Label/{k}_label.png" for c in "12" for n in range(9) for k in (2, 5)),
            "4 of 18 images had a mask, and some in each folder had none",
        ),
    ],
)
def test_folders_that_may_not_be_the_classes_are_noted(words: str, part: str, tmp_path: Path, image: Path) -> None:
    [note] = scan_folder(make(tmp_path, words, image)).notes
    assert re.search(part, note), note


@pytest.mark.parametrize(
    "words",
    [
        "A1/ A2/ B1/",
        "type1/ type2/",
        "n0101/ n0102/",
        "kos01/ kos02/ x01/",
        "2019/ 2020/",
        "day/ night/",
        "1/ 2/",
        "left/ right/ none/",
        "20230101/ x/",
    ],
)
def test_folders_with_such_names_among_others_are_classes(words: str, tmp_path: Path, image: Path) -> None:
    assert scan_folder(make(tmp_path, words, image)).notes == ()


def test_remedies_of_folders_that_are_no_classes_read_them(tmp_path: Path, image: Path) -> None:
    for number, (words, classes) in enumerate(
        (
            ("train/2023-05-01/x/ train/2023-05-08/y/ test/2023-05-01/x/", ("2023-05-01", "2023-05-08")),
            ("train_normal/ train_abnormal/ test_normal/ test_abnormal/", ("abnormal", "normal")),
            ("NoFinding_train/ Edema_train/ NoFinding_test/ Edema_test/", ("Edema", "NoFinding")),
            ("data/L1/OK/ data/L1/NOK/ data/L2/OK/ data/L2/NOK/", ("NOK", "OK")),
        )
    ):
        data = make(tmp_path / str(number), words, image)
        with pytest.raises(DataError) as caught:
            scan_data(data)
        [pattern] = re.findall("--label-from '([^']+)'", caught.value.remedy)
        assert scan_data(data, table_options=TableOptions(label_from=pattern)).classes == classes


def test_tables_of_images_outside_the_class_folders_are_used_or_noted(tmp_path: Path, image: Path) -> None:
    """As in GTSRB."""
    tables = {
        "Test": "Test.csv:Path,ClassId|" + "|".join(f"Test/{k}.png,{k}" for k in range(2)),
        "Train": "Train.csv:Path,ClassId|" + "|".join(f"Train/{c}/{k}.png,{c}" for c in "01" for k in range(3)),
    }
    files = "Train/0/ Train/1/ Test/0.png Test/1.png"
    index = scan_folder(make(tmp_path / "one", f"{files} {tables['Test']}", image))
    assert Counter(index.splits) == {"train": 6}
    assert "tables that are not used: Test.csv" in index.notes
    index = scan_folder(make(tmp_path / "both", " ".join([files, *tables.values()]), image))
    assert Counter(index.splits) == {"train": 6, "test": 2}


@pytest.mark.parametrize("name", ["a.json", "a.mat", "a.NPZ"])
def test_files_of_annotations_have_a_remedy(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"is not a table that can be read\. Write what it says into a CSV file"):
        scan_data(tmp_path / name)


def test_addresses_in_a_table_are_no_classes(tmp_path: Path, image: Path) -> None:
    table = "|".join(f"{c}{k},PNG,https://a.org/{k % 2}" for c in "ab" for k in range(4))
    files = " ".join(f"{c}/{c}{k}.png" for c in "ab" for k in range(4))
    index = scan_folder(make(tmp_path, f"{files} meta.csv:FILE~NAME,FORMAT,URL|{table}", image))
    assert index.classes == ("a", "b")
    assert index.notes == ("tables that are not used: meta.csv",)


def test_contradiction_names_two_classes(tmp_path: Path, image: Path) -> None:
    table = "t.csv:path,label|" + "|".join(f"{c}/{k}.png,{'b' if k else 'a'}" for c in "ab" for k in range(3))
    with pytest.raises(DataError, match=r"such as '(a' and 'b|b' and 'a)'"):
        scan_folder(make(tmp_path, f"a/ b/ {table}", image))


def test_a_named_column_of_labels_decides_against_the_folders(tmp_path: Path, image: Path) -> None:
    rows = {s: "|".join(f"{s}/{c}/{k}.png,{k % 2}" for c in "ab" for k in range(3)) for s in ("train", "val")}
    tables = " ".join(f"{s}.csv:path,sick|{text}" for s, text in rows.items())
    data = make(tmp_path / "data", f"train/a/ train/b/ val/a/ val/b/ {tables}", image)
    with pytest.raises(DataError, match="different classes") as caught:
        scan_data(data)
    assert caught.value.remedy.startswith("Name the tables' column of labels with --label-column, to train on its")
    index = scan_data(data, table_options=TableOptions(label_column="sick"))
    assert (index.classes, index.splits.count("val")) == (("0", "1"), 6)


def test_folders_name_the_classes_that_are_numbers_in_a_table(tmp_path: Path, image: Path) -> None:
    rows = "|".join(
        f"{c}/{k}.png,{number},{'val' if k else 'train'}" for number, c in enumerate("ba") for k in range(3)
    )
    data = make(tmp_path / "data", f"a/ b/ t.csv:path,label,split|{rows}", image)
    index = scan_data(data)
    assert (index.classes, index.labels, index.splits.count("val")) == (("a", "b"), (0,) * 3 + (1,) * 3, 4)
    index = scan_data(data, table_options=TableOptions(known_labels=("0", "1")))
    assert (index.classes, index.labels) == (("0", "1"), (1,) * 3 + (0,) * 3)


def test_table_adds_groups_to_the_folders(tmp_path: Path, image: Path) -> None:
    index = scan_folder(make(tmp_path / "data", RECOGNISED["a table that says the patients too"][0], image))
    assert index.groups == ("p0", "p1", "p2") * 2


def test_exclude_resolves_an_ambiguous_layout(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", AMBIGUOUS["masks that are paired in part"][0], image)
    for exclude in ("masks", "a/masks", "a/masks/*", "masks/"):
        index = scan_data(data, exclude=exclude)
        assert (index.classes, len(index), index.skipped) == (("a", "b"), 6, {"excluded image": 2})
    (tmp_path / "list.txt").write_text("# masks\nmasks\n0.png\n")
    with pytest.raises(DataError, match=r"list\.txt names 1 file that is not in .*: 0\.png"):
        scan_data(data, exclude=str(tmp_path / "list.txt"))
    with pytest.raises(DataError, match="no such list, and no image or folder of that name"):
        scan_data(data, exclude="mask.txt")


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("form", FORMS)
def test_exclusion_list_in_any_encoding_and_form(codec: str, form: Form, tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "a/ b/", image)
    odd = data / "a" / unicodedata.normalize(form, "é, 1.png")
    shutil.copyfile(image, odd)
    (tmp_path / "list.txt").write_bytes("a\\é, 1.png\nb/0.png\n".encode(codec))
    index = scan_data(data, exclude=str(tmp_path / "list.txt"))
    assert index.paths == ("a/0.png", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    (tmp_path / "list.txt").write_bytes(f"{data}/b\n".encode(codec))
    assert scan_data(data, exclude=str(tmp_path / "list.txt")).classes == ("a",)


def test_image_root_needs_a_table(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "a/ b/", image)
    with pytest.raises(UsageError, match="--image-root is for a table"):
        scan_data(data, table_options=TableOptions(image_root=str(data)))


def test_class_names_that_look_the_same_are_joined(tmp_path: Path, image: Path) -> None:
    one, two = (unicodedata.normalize(form, "café") for form in FORMS)
    data = make(tmp_path / "flat", f"{one}/ {two}/ bar/ bar~/", image)
    index = scan_folder(data)
    assert index.classes == ("bar", one)
    assert index.count_classes() == [6, 6]
    [note] = index.notes
    assert note == f"2 classes spelled in several ways that look the same (Unicode forms, blanks) joined: bar, {one}"
    index = scan_folder(make(tmp_path / "s", f"train/{one}/ train/bar/ test/{two}/ test/bar/", image))
    assert (index.classes, index.count_classes("test")) == (("bar", one), [3, 3])


def test_class_name_has_no_surrogate(tmp_path: Path, image: Path) -> None:
    for name in ("B\udcfcro", "M\udcfcll"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copyfile(image, tmp_path / "data" / name / "1.png")
    index = scan_folder(tmp_path / "data")
    assert index.classes == ("Büro", "Müll")
    assert all((index.root / path).is_file() for path in index.paths)


def test_images_without_suffix_are_recognised_by_content(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "a/ b/ a/x.json:{}", image)
    shutil.copyfile(image, data / "a/without")
    (data / "b/film.jxl").write_bytes(b"\xff\x0a\xfa\x7f")
    index = scan_folder(data)
    assert len(index) == 7
    assert index.skipped == {"not an image": 1, "image in a format that cannot be read (JPEG XL)": 1}


def test_link_to_itself_is_skipped(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "a/ b/", image)
    (data / "a/self.png").symlink_to("self.png")
    (data / "a/loop").symlink_to(data)
    assert scan_folder(data).skipped == {
        f"not a regular file (a broken link, a pipe), such as {data / 'a/self.png'}": 1
    }


def test_unreadable_folder_is_skipped_and_named(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "a/ b/", image)
    deep = data / "a"
    for _ in range(18):  # each name is short enough, the path to the last is not
        os.chdir(deep)
        deep = Path("d" * 250)
        deep.mkdir()
    index = scan_folder(data)
    assert index.classes == ("a", "b")
    [reason] = index.skipped
    assert reason.startswith(f"folder that cannot be read (File name too long), such as {data / 'a'}/ddd")


def test_links_between_two_folders_end(tmp_path: Path, image: Path) -> None:
    data = make(tmp_path / "data", "a/ b/", image)
    for at in range(40):  # 2^40 ways to the last
        (tmp_path / f"level{at}").mkdir()
        for name in ("one", "two"):
            (tmp_path / f"level{at}" / name).symlink_to(tmp_path / f"level{at + 1}")
    (data / "a/links").symlink_to(tmp_path / "level0")
    assert len(scan_folder(data)) == len(scan_folder(make(tmp_path / "same", "a/ b/", image)))


@pytest.mark.parametrize("exclude", ["*", "a", "list.txt"])
def test_exclusion_of_everything_is_refused(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, exclude: str
) -> None:
    data = make(tmp_path / "data", "a/", image)
    monkeypatch.chdir(tmp_path)
    names = sorted(str(path.relative_to(data)) for path in data.rglob("*.png"))
    Path("list.txt").write_text("\n".join([*names, ",reason", " "]) if exclude == "list.txt" else "")
    (data / "table.csv").write_text("path,label\n" + "".join(f"{name},{name[-5]}\n" for name in names))
    problem = rf"--exclude {re.escape(exclude)} leaves no image of|names 2 files that are not in"
    with pytest.raises(DataError, match=problem):
        scan_data(data, exclude=exclude)
    with pytest.raises(DataError, match=problem):
        scan_data(data / "table.csv", exclude=exclude)


def test_one_class_beside_a_folder_that_cannot_be_read_names_it(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, scan = make(tmp_path / "data", "a/ b/ c/", image), os.scandir

    def refuse(path: str) -> object:  # root may read everything
        if path.endswith(("/b", "/c")):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"one class only \('a'\); skipped: 2 folders that cannot be read \(Permission"):
        check_trainable(scan_folder(data))
