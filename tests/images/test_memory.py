"""Small files that become gigabytes are refused before memory is allocated, measured in a separate process."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from tools.fuzz_images import save_dicom

BOUND = 500  # MB above what the process had before, where decoding would take 1 to 5 GB
SCRIPT = """
import resource, sys
from pathlib import Path
import pydicom
from convnext_cli.images.decode import decode_image
from convnext_cli.errors import ImageError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        print(name, decode_image(Path(name)).shape)
    except ImageError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (1024 if sys.platform == "linux" else 1 << 20))
"""


def repeat_deflated(head: bytes, size: int) -> bytes:
    """Deflate `head` and then that many zeros, by repeating one deflated piece."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + piece * (size >> 20) + packer.flush()


def write_deflated_dicom(path: Path) -> None:
    """Write a deflated data set with a private element of 2 GiB of zeros."""
    head = save_dicom(np.zeros((8, 8), np.uint16), syntax=pydicom.uid.UID("1.2.840.10008.1.2.1.99"), meta_only=True)
    element = struct.pack("<HH", 9, 0x1001) + b"OB\0\0" + struct.pack("<L", 2 << 30)
    path.write_bytes(head + repeat_deflated(element, 2 << 30))


def write_rle_dicom(path: Path) -> None:
    """Write 12,000 x 12,000 pixels of 16 bits, all equal, in RLE."""
    side = 12_000
    row = b"".join(bytes([257 - min(128, side - start), 0]) for start in range(0, side, 128))
    segment = row * side
    data = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
    plain = np.zeros((8, 8), np.uint16)
    syntax = pydicom.uid.RLELossless
    path.write_bytes(save_dicom(plain, syntax=syntax, data=encapsulate([data]), Rows=side, Columns=side))


def write_deep_png(path: Path, kind: int, channels: int) -> None:
    """Write 8,000 x 8,000 pixels of 16 bits, all black."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 8000, 8000, 16, kind, 0, 0, 0)
    packed = b"\x78\x9c" + repeat_deflated(b"", 8000 * (8000 * channels * 2 + 1)) + bytes(4)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("deflated.dcm", write_deflated_dicom),
        ("rle.dcm", write_rle_dicom),
        ("rgba.png", lambda path: write_deep_png(path, 6, 4)),
        ("grey-alpha.png", lambda path: write_deep_png(path, 4, 2)),
    ],
)
def test_decoding_memory_is_bounded(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 5e6
    steps = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True)
    message, dataset = steps.stdout.splitlines()
    assert "decompresses to more than 336 MB" in message or "GB to decode (the limit is 1.3 GB)" in message
    assert int(dataset) < BOUND
