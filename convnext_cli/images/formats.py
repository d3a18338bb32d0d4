"""Image formats: the readable ones, their suffixes, and the first bytes that identify them.

`scan`, `manifest`, `predict` and `decode` share these tables. Neither Pillow nor pydicom is imported. A test compares
the suffixes with Pillow's registry.
"""

import os
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from convnext_cli.errors import ImageError
from convnext_cli.text import find_address

PILLOW_SUFFIXES: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "MPO": (".mpo",),
    "MSP": (".msp",),
    "PCX": (".pcx",),
    "PNG": (".png", ".apng"),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
}
"""The formats that Pillow may open, by Pillow's names, with their suffixes.

These formats of its registry are left out: EPS (starts Ghostscript), WMF and others that need a separate program,
containers of other data (HDF5, GRIB, BUFR, MPEG, FITS), and game textures.
"""

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
IMAGE_SUFFIXES = DICOM_SUFFIXES.union(*PILLOW_SUFFIXES.values())

HEAD_BYTES = 512
"""Bytes at the start of a file that `identify_bytes` needs."""


JPEG2000_CODESTREAM = b"\xff\x4f\xff\x51"
"""Start of a JPEG 2000 codestream: markers SOC and SIZ (ISO/IEC 15444-1, A.5.1)."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""Start of a text that Git LFS puts in place of a file."""


class SpecialFileError(OSError):
    """A pipe, a socket or a device where a file is expected."""


def explain_missing(paths: Sequence[Path]) -> ImageError:
    """Return the error for paths that do not exist; addresses are called so, and paths that may not be seen."""
    if address := find_address(paths[0]):
        return ImageError(f"{address} is an address, and images are not downloaded", "Download it, and give the file")
    try:
        paths[0].stat()
    except PermissionError as error:
        return ImageError(f"{paths[0]} cannot be read ({error.strerror})", "Check the permissions of its folders")
    except (OSError, ValueError):  # it does not exist, is a loop of links, or is no path
        pass
    return ImageError(f"{', '.join(map(str, paths[:5]))} does not exist", "Correct the path, or restore the file")


def explain_missing_reader(fact: str, extra: str) -> ImageError:
    """Return the error for a file whose reader is in an extra that is not installed; `fact` names file and format."""
    return ImageError(f"{fact}, which needs: pip install 'convnext-cli[{extra}]'", "Install it, or remove the file")


class ImageFormat(NamedTuple):
    """A format identified by a file's first bytes."""

    name: str
    """Pillow's name of the format, `DICOM`, or the common name of an unreadable one, such as `JPEG XL`."""
    readable: bool


_SIGNATURES: tuple[tuple[bytes, str], ...] = (  # regular expressions at the first byte
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"II\*\0|MM\0\*|II\0\*|MM\*\0|II\+\0\x08\0|MM\0\+\0\x08", "TIFF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"BM.{12}(?:\x0c|\x10|\x28|\x34|\x38|\x40|\x6c|\x7c)\0\0\0", "BMP"),
    (rb"P[1-6][ \t\r\n]+(?:#|\d)|P[Ff]\s+\d", "PPM"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000"),
    (rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)", "HEIF"),  # also AVIF, whose other brands tell
    (rb"qoif", "QOI"),
    (rb"8BPS\0\x01", "PSD"),
    (rb"\x01\xda[\0\x01][\x01\x02]\0[\x01-\x03]", "SGI"),
    (rb"\x59\xa6\x6a\x95", "SUN"),
    (rb"\x0a[\0\x02\x03\x05][\0\x01][\x01\x02\x04\x08]", "PCX"),
    (rb"\0\0\x01\0[^\0]\0..[^\0]?\0[\0\x01]\0", "ICO"),
    (rb"icns\0", "ICNS"),
    (rb"DanM|LinS", "MSP"),
    (rb"/\* XPM \*/", "XPM"),
    (rb"\s*#define[ \t]+\w*_?width[ \t]+\d", "XBM"),
    (rb".{128}DICM", "DICOM"),
)
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (rb"%!PS|\x04%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (rb"II\xbc\x01", "JPEG XR"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "WMF or EMF"),
    (rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]", "SVG"),
    (rb"....ftypcrx |FUJIFILMCCD-RAW|IIU\0|II(?:RO|RS)|MMOR|\0MRM|FOVb", "camera raw"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"#\?(?:RADIANCE|RGBE)", "Radiance HDR"),
    (rb"SIMPLE  =", "FITS"),
    (rb"\x89HDF\r\n\x1a\n", "HDF5"),
    (rb"NRRD000\d", "NRRD"),
    (rb".{344}(?:n\+1|ni1)\0", "NIfTI"),
    (rb"ObjectType\s*=\s*Image|NDims\s*=\s*\d", "MetaImage"),
    (rb"ZISRAWFILE", "CZI"),
    (rb"gimp xcf", "XCF"),
    (rb"AT&TFORM....DJV", "DjVu"),
    (rb"DDS \x7c\0\0\0|BLP[12]|FTEX", "game texture"),
    (rb"BPG\xfb", "BPG"),
    (rb"FLIF", "FLIF"),
)
_READABLE = tuple((re.compile(pattern, re.DOTALL), ImageFormat(name, True)) for pattern, name in _SIGNATURES)
_UNREADABLE = tuple((re.compile(pattern, re.DOTALL), ImageFormat(name, False)) for pattern, name in _OTHERS)
_RAW_SUFFIXES = frozenset(
    {".3fr", ".arw", ".cr2", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".nef", ".nrw", ".pef", ".raw", ".rwl", ".srw"}
)
_VALUE_REPRESENTATIONS = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_LONG_REPRESENTATIONS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # PS3.5, table 7.1-1


def has_image_suffix(name: str) -> bool:
    """Return True if a file name ends with the suffix of a readable format, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def open_regular_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading. Never wait for a pipe and never open a device.

    Raises:
        IsADirectoryError: it is a folder.
        SpecialFileError: it is a pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    if not stat.S_ISDIR(mode := os.stat(path).st_mode) and not stat.S_ISREG(mode):  # noqa: PTH116
        raise SpecialFileError(f"{path} is not a regular file")
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def identify_file(path: str | Path) -> ImageFormat | None:
    """Identify a file's image format by its first bytes.

    Return None for an unknown format, a special file, or a file that cannot be opened.
    """
    try:
        with open_regular_file(path) as file:
            return identify_bytes(file.read(HEAD_BYTES), os.path.splitext(path)[1])  # noqa: PTH122
    except (OSError, ValueError):
        return None


def identify_bytes(head: bytes, suffix: str = "") -> ImageFormat | None:
    """Identify an image format by the first `HEAD_BYTES` bytes of a file; None if it is unknown.

    The suffix decides only what the bytes leave open: TGA, which has no signature, camera raw, which is TIFF with a
    preview as its image, and a file that is both TIFF and DICOM.
    """
    suffix = suffix.lower()
    if head[4:8] == b"ftyp":  # ISO media: the brands distinguish AVIF, HEIC and video
        brands = head[8 : int.from_bytes(head[:4], "big")]
        if {b"avif", b"avis"} & {brands[i : i + 4] for i in range(0, len(brands), 4)}:
            return ImageFormat("AVIF", True)
    is_tiff = suffix in PILLOW_SUFFIXES["TIFF"]
    if head[128:132] == b"DICM" and not is_tiff:  # its preamble may be the start of a TIFF file (PS3.10, 7.1)
        return ImageFormat("DICOM", True)
    for pattern, image_format in _READABLE:
        if pattern.match(head):
            is_raw = image_format.name == "TIFF" and (suffix in _RAW_SUFFIXES or head[8:10] == b"CR")
            return ImageFormat("camera raw", False) if is_raw else image_format
    for pattern, image_format in _UNREADABLE:
        if pattern.match(head):
            return image_format
    if any(_starts_like_dicom(head, order, explicit) for order in "<>" for explicit in (True, False)):
        return ImageFormat("DICOM", True)
    return ImageFormat("TGA", True) if suffix in PILLOW_SUFFIXES["TGA"] and head else None


def _starts_like_dicom(head: bytes, order: str, explicit: bool) -> bool:
    """Return True if `head` begins with three DICOM elements in rising order: a data set without its preamble."""
    place, last = 0, 0
    for count in range(3):
        if place + 12 > len(head):
            return count >= 2
        group, element = struct.unpack_from(f"{order}HH", head, place)
        tag = group << 16 | element
        if tag <= last or group not in (0x0002, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028) or (not last and group > 8):
            return False
        at, layout = place + 4, f"{order}L"  # of the element's length
        if explicit:
            representation = head[place + 4 : place + 6]
            if representation not in _VALUE_REPRESENTATIONS:
                return False
            at, layout = (place + 8, layout) if representation in _LONG_REPRESENTATIONS else (place + 6, f"{order}H")
        (length,) = struct.unpack_from(layout, head, at)
        if length % 2 and length != 0xFFFFFFFF:
            return False
        place, last = at + struct.calcsize(layout) + length, tag
    return True
