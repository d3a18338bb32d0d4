import unicodedata
from pathlib import Path

import pytest

from convnext_cli.encoding import decode_name, decode_text, find_name, fold_name, normalise_name, read_text
from convnext_cli.errors import DataError

GERMAN = "path,label\ni/1.png,Größe\ni/2.png,Müll à 5 €\n"


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32"), ("cp1252", "Windows-1252"),
    ],
)  # fmt: skip
def test_common_encodings_are_read(codec: str, name: str) -> None:
    assert decode_text(GERMAN.encode(codec), "x.csv") == (GERMAN, name)


def test_latin_1_is_read_as_windows_1252() -> None:
    text = "path,label\n1.png,Büro\n2.png,créée\n"
    assert decode_text(text.encode("latin-1"), "x.csv") == (text, "Windows-1252")


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("path,label\n1.png,лёгкое\n".encode("cp1251"), r"byte 0xeb in line 2 \(byte 18\); it is neither UTF-8"),
        ("path,label\n1.png,肺炎\n".encode("gbk"), "in line 2"),
        ("path,label\n1.png,胸\n".encode("shift-jis"), "in line 2"),
        ("path,label\n1.png,Büro\n".encode("mac-roman"), "byte 0x9f in line 2"),
        (b"path,label\n1.png,a\x81\n", "byte 0x81 in line 2"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "zero bytes, so it is not text"),
        (b"\xff\xfea\0b", "it has the mark of UTF-16 but is not"),
    ],
)
def test_unknown_encoding_is_refused_with_byte_and_line(raw: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        decode_text(raw, "x.csv")


def test_missing_text_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        read_text(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "other",
    [
        unicodedata.normalize("NFD", "café au lait"), " café au lait", "café au lait\u3000", "café\xa0au  lait",
        "café\u200b au lait", "\ufeffcafé au lait", "\u202acafé au lait\u202c", "café au lait\u200e",
    ],
)  # fmt: skip
def test_names_that_look_the_same_are_equal(other: str) -> None:
    assert normalise_name(other) == "café au lait"
    assert find_name(other, ["x", "café au lait"]) == 1
    assert find_name("café au lait", ["x", other]) == 1


def test_names_that_look_different_stay_different() -> None:
    assert len({normalise_name(name) for name in ("a", "A", "no finding", "no_finding", "ﬁ", "fi")}) == 6
    assert fold_name("No_Finding") == fold_name("no finding") == fold_name("NO-FINDING")
    assert fold_name("grade 1") == fold_name("Grade_01") == fold_name("grade-1.00") != fold_name("grade 10")
    assert len({fold_name(name) for name in ("0", "1.5", "1.05", "1.50", "10", "p1.0.2", "100")}) == 7
    assert fold_name("-1") == fold_name("\u22121.0") != fold_name("1")
    assert fold_name("\uff21") == fold_name("a") == fold_name("\u0410") == fold_name("\u0391") != fold_name("b")
    assert find_name("b", ["a", "B"]) is None
    assert normalise_name(" ") == " "


def test_decoded_name_has_no_surrogate() -> None:
    assert decode_name("caf\udce9") == "café"
    assert decode_name("\udcff\udcfe\udcfd") == r"\xff\xfe\xfd"
    assert decode_name("\udcff\udcfe") == "ÿþ"  # not the byte order mark of an empty text
    assert normalise_name("caf\udce9 ") == "café"
