"""Naming schemes of real data sets, with groups in the names and without.

Each scheme is a list of relative paths, `class/name`. Those of `WITH_GROUPS` have 16 subjects, those in `FEWER` 10.
"""

import hashlib
from collections.abc import Callable

SUBJECTS, THREE, MANY = range(16), (1, 2, 3), range(24)
FEWER = {"frames", "frames, glued", "frames of named videos"}  # of 10 subjects
NAMES = ["anna", "bert", "carl", "dora", "emil", "fred", "gina", "hans", "ina", "jan", "kim", "lea", "max", "nora"]
NAMES += ["otto", "paul"]
VIDEOS = ["kitchen", "street", "beach", "forest", "office", "park", "night", "train", "shop", "snow"]


def hexadecimal(value: object, length: int = 8) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:length]


def uuid(value: object) -> str:
    x = hexadecimal(("uuid", value), 32)
    return f"{x[:8]}-{x[8:12]}-{x[12:16]}-{x[16:20]}-{x[20:]}"


def label(test_set: int) -> str:
    return ("dog", "cat")[test_set % 2]


def three(name: Callable[[int, int], str]) -> list[str]:
    """Return three images of each subject."""
    return [f"{label(p)}/{name(p, i)}.png" for p in SUBJECTS for i in THREE]


def each(name: Callable[[str, int], str]) -> list[str]:
    """Return 24 images of each class."""
    return [f"{c}/{name(c, i)}.jpg" for c in ("cat", "dog") for i in MANY]


def later(c: str) -> int:
    """Return the offset of a class's numbers, so that those of the second class continue those of the first."""
    return 500 * (c == "dog")


WITH_GROUPS = {
    "patient and image": three(lambda p, i: f"patient{p}_{i}"),
    "person_class_image": three(lambda p, i: f"person{p + 90}_{label(p)}_{p * 3 + i}"),
    "ten images each": [f"{label(p)}/person{p + 90}_{label(p)}_{p * 10 + i}.png" for p in SUBJECTS for i in range(10)],
    "classes glued": three(lambda p, i: f"{label(p)}{p + 12}crop{i}"),
    "UUID": three(lambda p, i: f"{uuid(p)}_{i}"),
    "uuid crop": three(lambda p, i: f"{uuid(p)}-crop{i}"),
    "hexadecimal": three(lambda p, i: f"{hexadecimal(p)}_{i}"),
    "sha1": three(lambda p, i: f"{hexadecimal(p, 32)}_{i}"),
    "letters": three(lambda p, i: f"{'abcdefghijklmnop'[p] * 3}{'xyzw'[p % 4]}_{i}"),
    "names": three(lambda p, i: f"{NAMES[p]}_{i}"),
    "ADC0020_1": three(lambda p, i: f"ADC{p + 20:04}_{i}"),
    "copies": [f"{label(p)}/IMG_{1000 + 7 * p}{s}.jpg" for p in SUBJECTS for s in ("", " (1)", " (2)")],
    "copies win": [f"{label(p)}/DSC0{1000 + 7 * p}{s}.jpg" for p in SUBJECTS for s in ("", " - Copy", " - Copy (2)")],
    "whatsapp crops": three(lambda p, i: f"IMG-202301{1 + p // 4:02}-WA{p % 4:04}_{i}"),
    "whatsapp desktop": three(lambda p, i: f"WhatsApp Image 2023-01-{1 + p // 4:02} at 10.{p % 4 + 10}.22 ({i})"),
    "IM series": [f"{label(p)}/IM-{p + 115:04}-{i:04}.jpeg" for p in SUBJECTS for i in THREE],
    "NORMAL2": [f"{label(p)}/NORMAL2-IM-{p + 115:04}-{i:04}.jpeg" for p in SUBJECTS for i in THREE],
    "plates": [
        f"{label(p)}/{'ABCD'[p // 4]}{p % 4 + 1:02}_s{s}_w{w}.tif" for p in SUBJECTS for s in (1, 2) for w in (1, 2)
    ],
    "plates 2": [
        f"{label(p)}/plate1_{'ABCD'[p // 4]}{p % 4 + 1:02}_s{s}_w{w}.tif"
        for p in SUBJECTS
        for s in (1, 2)
        for w in (1, 2)
    ],
    "wells by row and column": [
        f"{label(p)}/r{p // 2 + 1:02}c{p % 2 + 2:02}f{s:02}p01-ch{w}sk1fk1fl1.tiff"
        for p in SUBJECTS
        for s in (1, 2)
        for w in (1, 2)
    ],
    "wells, fields glued": [
        f"{label(p)}/MFGTMP_120101010001_{'BCDEFGHI'[p // 2]}{p % 2 + 2:02}f{s:02}d0.TIF"
        for p in SUBJECTS
        for s in THREE
    ],
    "cameras first": [f"{label(p)}/cam{c}_{p + 300:05}.bmp" for p in SUBJECTS for c in (1, 2, 3, 4)],
    "cameras by letter": [f"{label(p)}/Camera_{c}_{p + 300:05}_20240503.bmp" for p in SUBJECTS for c in "AB"],
    "folders of cameras": [f"{label(p)}/cam{c}/part_{p + 300:04}.png" for p in SUBJECTS for c in (1, 2, 3, 4)],
    "folders of views": [f"{label(p)}/{view}/{p + 300:04}.png" for p in SUBJECTS for view in ("front", "back")],
    "folders of dates": [f"{label(p)}/2024-05-{7 * i:02}/plant_{p + 100}.jpg" for p in SUBJECTS for i in THREE],
    "eyes": [f"{label(p)}/{p}_{s}.jpeg" for p in SUBJECTS for s in ("left", "right")],
    "eyes 2": [f"{label(p)}/patient{p}_{s}.jpeg" for p in SUBJECTS for s in ("OD", "OS")],
    "eyes first": [f"{label(p)}/left_{p}.jpeg" for p in SUBJECTS] + [f"{label(p)}/right_{p}.jpeg" for p in SUBJECTS],
    "eyes glued": [f"{label(p)}/{p}{s}.jpeg" for p in SUBJECTS for s in ("left", "right")],
    "frames": [f"{label(p)}/video{p:02}_frame{f:04}.png" for p in range(10) for f in range(0, 60, 10)],
    "frames, glued": [f"{label(p)}/v{p:02}f{f:04}.png" for p in range(10) for f in range(0, 60, 10)],
    "frames of named videos": [f"{label(p)}/{VIDEOS[p]}-{f:04}.png" for p in range(10) for f in range(0, 60, 10)],
    "crops": three(lambda p, i: f"img_{p + 12}_crop{i}"),
    "crops glued": three(lambda p, i: f"img{p + 12}crop{i}"),
    "crop first": three(lambda p, i: f"crop{i}_img{p + 12}"),
    "crop first 2": three(lambda p, i: f"crop_{p * 3 + i}_patient{p + 12}"),
    "roboflow": three(lambda p, i: f"frame_{p * 7:05}_jpg.rf.{hexadecimal((p, i), 32)}"),
    "roboflow 2": three(lambda p, i: f"{hexadecimal(p, 10)}_png.rf.{hexadecimal((p, i), 32)}"),
    "isic crops": three(lambda p, i: f"ISIC_{24306 + p:07}_patch{i}"),
    "breakhis": three(lambda p, i: f"SOB_{'B_A' if label(p) == 'dog' else 'M_D'}-14-{22549 + p}AB-40-{i:03}"),
    "idc": [
        f"{(p % 2 and 'cat') or 'dog'}/{10253 + p}_idx5_x{x}_y{y}_class{p % 2}.png"
        for p in SUBJECTS
        for x in (51, 101)
        for y in (1, 51)
    ],
    "malaria": [
        f"{label(p)}/C{33 + p}P{p % 3}thinF_IMG_20150619_{114756 + p}_cell_{i}.png" for p in SUBJECTS for i in THREE
    ],
    "chestxray14": three(lambda p, i: f"{p:08}_{i:03}"),
    "market": [f"{label(p)}/{p:04}_c{c}s1_{p * 100 + c:06}_01.jpg" for p in SUBJECTS for c in (1, 2, 3)],
    "oct": three(lambda p, i: f"{label(p).upper()}-{1016042 + 37 * p}-{i}"),
    "cbis": [
        f"{label(p)}/Mass-Training_P_{p:05}_{s}_{v}.png"
        for p in SUBJECTS
        for s in ("LEFT", "RIGHT")
        for v in ("CC", "MLO")
    ],
    "lidc": three(lambda p, i: f"LIDC-IDRI-{p:04}_slice_{i * 10:03}"),
    "patient date": three(lambda p, i: f"P{p:03}_202301{i:02}"),
    "timestamp": three(lambda p, i: f"{1617183726 + 99 * p}_{i}"),
    "phone bursts": three(lambda p, i: f"IMG_20230101_{101010 + p}_{i}"),
    "cells of slides": three(lambda p, i: f"slide-{p + 3}-cell-{i}"),
    "sequences": [f"{label(p)}/sub-{p:02}_{m}.png" for p in SUBJECTS for m in ("T1", "T2", "FLAIR")],
    "bids": [
        f"{label(p)}/sub-{p:02}_ses-01_{m}_slice{i}.png" for p in SUBJECTS for m in ("T1w", "T2w") for i in (1, 2)
    ],
    "unicode": three(lambda p, i: f"пациент{p}_{i}"),
    "plus spaces": three(lambda p, i: f"Patient {p} image {i}"),
    "augmented": three(lambda p, i: f"aug_{p}_{i}"),
    "rotations": [f"{label(p)}/{hexadecimal(p)}_rot{r}.png" for p in SUBJECTS for r in (0, 90, 180)],
    "in subfolders": [f"{label(p)}/site{p % 3}/p{p:02}/{i}.png" for p in SUBJECTS for i in THREE],
    "several schemes at once": [
        f"{label(p)}/{name}.jpg"
        for p in range(4)
        for i in THREE
        for name in (
            f"{uuid(p)}_{i}",
            f"{hexadecimal(p)}_{i}",
            f"ADC{p:04}_{i}",
            f"WhatsApp Image 2023-01-0{p + 1} at 10.1{p}.22 ({i})",
        )
    ],
    "patient last": three(lambda p, i: f"{p * 3 + i:04}_patient{p}"),
    "date, then patient": three(lambda p, i: f"2023-01-{i + p % 9:02}_P{p:03}_{i}"),
    "both classes of a patient": [f"{c}/p{p}_{c}{i}.png" for c in ("cat", "dog") for p in SUBJECTS for i in THREE],
    "tiles of slides": [
        f"{label(p)}/{label(p)}slide{p:02}_x{x}_y{y}.png" for p in SUBJECTS for x in (0, 1) for y in (0, 1)
    ],
    "a letter last": three(lambda p, i: f"{p + 200}{'abc'[i - 1]}"),
    "a word of the change last": [
        f"{label(p)}/{p:03}{s}.png" for p in SUBJECTS for s in ("", "_flip", "_rot90", "_bright")
    ],
    "a word of the change last, glued": [
        f"{label(p)}/IMG_{p:03}{s}.png" for p in SUBJECTS for s in ("", "Flip", "Rot90", "HFlipBlur", "Aug2")
    ],
    "some changed, words glued": [f"{label(p)}/IMG_{p:03}{s}.png" for p in SUBJECTS for s in ("", "Flip")[: 1 + p % 2]],
    "a word of the change first": [
        f"{label(p)}/{c}{p:03}.png" for p in SUBJECTS for c in ("", "flip_", "rot90_", "aug2_", "Rotated_")
    ],
    "words of changes before": [
        f"{label(p)}/{c}photo{p:03}.jpg"
        for p in SUBJECTS
        for c in ("", "gamma_", "gaussian_noise_", "color_jitter_", "CLAHE-", "translated_", "Grayscale ", "darken2_")
    ],
    "UUID, then the change": [
        f"{label(p)}/{uuid(p)}{c}.jpg" for p in SUBJECTS for c in ("", "_gamma", "_new30degFlipLR", "_sharpened")
    ],
    "a word of the change within": three(lambda p, i: f"{hexadecimal(p)}_microcrop_{p % 3}_flip_{i}"),
    "some changed, words first": [
        f"{label(p)}/{c}IMG_{p:03}.png" for p in SUBJECTS for c in ("", "hflip_", "rot90_blur_")[: 1 + 2 * (p % 2)]
    ],
}

WITHOUT_GROUPS = {
    "numbered": each(lambda _, i: f"{i:04}"),
    "counted in folders of dates": each(lambda _, i: f"2024-05-{i // 6 + 1:02}/IMG_{i % 6:04}"),
    "numbered in folders of dates": each(lambda _, i: f"2024-05-{i // 6 + 1:02}/{i % 6:04}"),
    "numbered in folders of sites": each(lambda _, i: f"site{i // 12 + 1}/{i % 12:04}"),
    "continued": each(lambda c, i: f"{i + 24 * (c == 'dog'):04}"),
    "dates with an abbreviated month": each(
        lambda c, i: f"{i % 12 + 1:02}{'Aug' if i < 12 else 'Sep'}20{c == 'dog':02}"
    ),
    "words that begin as those of a change": [
        f"{c}/IMG_{i:03}{s}.png" for c in ("cat", "dog") for i in range(12) for s in [("Rotterdam", "CropField")[i % 2]]
    ],
    "a change is the class": each(lambda c, i: f"{'flip' if c == 'cat' else 'noise'}_{i}"),
    "class.number": each(lambda c, i: f"{c}.{i}"),
    "class number": each(lambda c, i: f"{c} ({i})"),
    "number_class": each(lambda c, i: f"{i}_{c}"),
    "classnumber": each(lambda c, i: f"{c}{i:02}"),
    "wnid": each(lambda c, i: f"{'n01443537' if c == 'cat' else 'n02085620'}_{i}"),
    "IMG": each(lambda c, i: f"IMG_{1000 + 3 * i + 100 * (c == 'dog')}"),
    "DSC": each(lambda c, i: f"DSC0{1000 + 3 * i + 100 * (c == 'dog')}"),
    "DSC restarts": each(lambda _, i: f"DSC0{1000 + i}"),
    "dates": each(lambda c, i: f"IMG_202301{i // 4 + 1:02}_{101010 + i + 30 * (c == 'dog')}"),
    "dates2": each(lambda _, i: f"2023-01-{i // 4 + 1:02} 10.10.{10 + i}"),
    "date counter": each(lambda c, i: f"202301{i // 4 + 1:02}_{i + 24 * (c == 'dog')}"),
    "date only": each(lambda _, i: f"202301{i // 4 + 1:02}-{i % 4}"),
    "whatsapp": each(lambda c, i: f"IMG-202301{i // 4 + 1:02}-WA{i % 4 + 4 * (c == 'dog'):04}"),
    "whatsapp desktop": each(
        lambda c, i: f"WhatsApp Image 2023-01-{1 + i // 4:02} at 10.{i % 4 + 10}.{22 + (c == 'dog')}"
    ),
    "screenshot": each(lambda c, i: f"Screenshot from 2023-01-{1 + i // 4:02} 10-{i % 4 + 10}-{22 + (c == 'dog')}"),
    "UUID": each(lambda c, i: uuid((c, i))),
    "hexadecimal": each(lambda c, i: hexadecimal((c, i))),
    "hex32": each(lambda c, i: hexadecimal((c, i), 32)),
    "isic": each(lambda c, i: f"ISIC_{24306 + i + 50 * (c == 'dog'):07}"),
    "isic down": each(lambda c, i: f"ISIC_{24306 + i + 50 * (c == 'dog'):07}_downsampled"),
    "version last": each(lambda c, i: f"img_{i + 50 * (c == 'dog')}_v2"),
    "cub": [
        f"{c}/{n}_{i:04}_{hexadecimal((c, i), 6)}.jpg"
        for c, n in (
            ("001.Black_footed_Albatross", "Black_Footed_Albatross"),
            ("002.Black_billed_Cuckoo", "Black_Billed_Cuckoo"),
        )
        for i in MANY
    ],
    "brain": each(lambda c, i: f"Tr-{'gl' if c == 'cat' else 'no'}_{i:04}"),
    "imagenet val": each(lambda c, i: f"ILSVRC2012_val_{i * 37 + 100 * (c == 'dog'):08}"),
    "two cameras": [f"{c}/{k}_{i:04}.jpg" for c in ("cat", "dog") for k in ("canon", "nokia") for i in range(14)],
    "colours": [f"{c}/{k}_{c}_{i}.jpg" for c in ("cat", "dog") for k in ("red", "green", "grey") for i in range(10)],
    "splits in names": [f"{c}/{k}_{i:03}.jpg" for c in ("cat", "dog") for k in ("train", "test") for i in range(14)],
    "same stems in subfolders": [f"{c}/{k}/{i:03}.jpg" for c in ("cat", "dog") for k in ("x", "y") for i in range(14)],
    "one folder": each(lambda _, i: f"images/{i}"),
    "roboflow without copies": each(lambda c, i: f"frame_{i + 30 * (c == 'dog'):05}_jpg.rf.{hexadecimal((c, i), 32)}"),
    "flickr": each(lambda c, i: f"{3000000 + i * 977 + (c == 'dog')}_{hexadecimal((c, i), 10)}_b"),
    "plantvillage": each(lambda c, i: f"{uuid((c, i))}___{('RS_HL', 'FREC_Scab')[c == 'dog']} {i:04}"),
    "size": each(lambda c, i: f"{c}-{i:03}-640x480"),
    "download": each(lambda _, i: f"images ({i})"),
    "words": each(lambda c, i: f"{'abcdefgh'[i % 8]}{'stuvwxyz'[i // 8]}{c[0]}"),
    "pytorch": each(lambda c, i: f"{i + 24 * (c == 'dog')}_label_{int(c == 'dog')}"),
    "img": each(lambda c, i: f"image_{i + 24 * (c == 'dog'):05}"),
    "frame of one video": each(lambda c, i: f"video1_frame{i + 24 * (c == 'dog'):05}"),
    "gopro": each(lambda c, i: f"GOPR{i + 300 * (c == 'dog'):04}"),
    "unix": each(lambda c, i: f"{1617183726 + i * 99 + (c == 'dog')}"),
    "tiles by their place": [f"{c}/tile_x{x}_y{y}.png" for c in ("cat", "dog") for x in range(5) for y in range(5)],
    "one image a patient": each(lambda c, i: f"patient{i + later(c):03}"),
    "weather": [f"{c}/{w}_{i}.jpg" for c in ("cat", "dog") for w in ("sunny", "rainy", "foggy") for i in range(8)],
    "short hexadecimal": each(lambda c, i: hexadecimal((c, i), 3)),
    "one letter for all": each(lambda c, i: f"{i + later(c)}a"),
    "mammograms by number": each(lambda c, i: f"mdb{i + later(c):03}"),
}
