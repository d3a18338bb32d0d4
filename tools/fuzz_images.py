"""Fuzz the decoder with damaged images of every format, in 2 GiB of memory: no crash, internal error or long wait.

    python tools/fuzz_images.py --number 5000 --seed 0
    python tools/fuzz_images.py --number 5000 --seed 0 --only zip    (zip files of images, unpacked and scanned)

Prints the number of files tried, read, refused (a `DataError`) and slow (over 10 s), and of crashes of the process.
"""

import argparse
import io
import multiprocessing
import os
import resource
import struct
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image, features
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless, generate_uid

MEMORY = 2 << 30  # bytes of address space, all libraries included
SLOW = 10.0  # seconds
EXTREMES = (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFF, 0x10000, 0x00010000, 0x3FFFFFFF)


def main() -> None:
    """Fuzz in child processes, so that a crash is counted and the next file is tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="suffix such as dcm or zip; default: all but zip")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    start = 0
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        while start < options.number:
            child = context.Process(target=run, args=(Path(folder), start, options.number, options.seed, options.only))
            child.start()
            child.join()
            lines = [line.split("\t") for line in (Path(folder) / "log").read_text().splitlines()]
            counts.update(line[1] for line in lines if len(line) > 1)
            for line in lines:
                if len(line) > 2:
                    print(*line, sep="  ")
            start = int(lines[-1][0]) + 1 if lines else start + 1
            if child.exitcode:
                counts["crashed"] += 1
                print(f"{start - 1}  crashed ({child.exitcode})")
    words = ("read", "refused", "internal error", "slow", "crashed")
    print(f"tried {options.number}, " + ", ".join(f"{word} {counts[word]}" for word in words))


def run(folder: Path, start: int, stop: int, seed: int, only: str) -> None:
    """Decode the files from `start` on; each line of the log has a file's number and result."""
    from convnext_cli.data.sources import scan_data
    from convnext_cli.errors import DataError
    from convnext_cli.images.decode import decode_image

    os.environ["CONVNEXT_CACHE"] = str(folder / "cache")
    intact = [(data, ending) for data, ending in [*encode_all(), *encode_zips()] if ending == (only or ending)]
    intact = [(data, ending) for data, ending in intact if only or ending != "zip"]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with (folder / "log").open("w", buffering=1) as log:
        for number, (data, ending) in enumerate(mutate(intact, stop, seed)):
            if number < start:
                continue
            path = folder / f"damaged.{ending}"
            path.write_bytes(data)
            log.write(f"{number}")
            log.flush()
            begun = time.monotonic()
            try:
                scan_data(path) if ending == "zip" else decode_image(path)
                result = "read"
            except DataError:
                result = "refused"
            except Exception as error:
                result = f"internal error\t{ending} {type(error).__name__}: {error}"
            log.write(f"\t{result}\n")
            if (seconds := time.monotonic() - begun) > SLOW:
                log.write(f"{number}\tslow\t{ending} {seconds:.0f} s\n")


def mutate(intact: list[tuple[bytes, str]], number: int, seed: int) -> Iterator[tuple[bytes, str]]:
    """Yield intact files with bytes flipped, cut or spliced, or with extreme numbers; the same for the same seed."""
    random = np.random.default_rng(seed)
    for i in range(number):
        data, ending = intact[i % len(intact)]
        changed = bytearray(data)
        kind = random.integers(5)
        if kind == 0:
            for place in random.integers(0, len(changed), random.integers(1, 20)):
                changed[place] = random.integers(256)
        elif kind == 1:
            del changed[random.integers(1, len(changed)) :]
        elif kind == 2:
            other = intact[random.integers(len(intact))][0]
            start, length = random.integers(len(changed)), random.integers(1, 200)
            changed[start : start + length] = other[start % len(other) :][:length]
        elif kind == 3:  # the header, where sizes and types stand
            for place in random.integers(0, min(64, len(changed)), 3):
                changed[place] = random.integers(256)
        else:
            place = int(random.integers(0, max(1, min(len(changed) - 4, 1200))))
            value = EXTREMES[random.integers(len(EXTREMES))]
            changed[place : place + 4] = struct.pack("<L" if random.integers(2) else ">L", value)
        yield bytes(changed), ending


def encode_zips() -> Iterator[tuple[bytes, str]]:
    """Yield zip files of two classes: stored, deflated, with a table, with folders in a folder."""
    images = [data for data, ending in encode_all() if ending == "png"]
    for packing, root, table in (
        (zipfile.ZIP_STORED, "", ""), (zipfile.ZIP_DEFLATED, "", ""), (zipfile.ZIP_DEFLATED, "set/train/", ""),
        (zipfile.ZIP_BZIP2, "", "path,label\na/0.png,x\nb/0.png,y\na/1.png,x\nb/1.png,y\n"),
        (zipfile.ZIP_LZMA, "", ""),
    ):  # fmt: skip
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", packing) as archive:
            for name in "ab":
                for i in range(2):
                    archive.writestr(f"{root}{name}/{i}.png", images[i])
            if table:
                archive.writestr("labels.csv", table)
        yield buffer.getvalue(), "zip"


def encode_all() -> Iterator[tuple[bytes, str]]:
    """Yield a small image in each format, depth and layout."""
    y, x = np.mgrid[:32, :40]
    colour = np.stack([128 + 100 * np.sin(x / (4 + i) + i) * np.cos(y / (6 - i)) for i in range(4)], axis=2)
    base = Image.fromarray(colour[..., :3].astype(np.uint8))
    deep = (colour[..., 0] * 16).astype(np.uint16)
    kinds: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("jpg", "JPEG", base, {}), ("jpg", "JPEG", base, {"progressive": True}),
        ("jpg", "JPEG", base.convert("CMYK"), {}), ("png", "PNG", base, {}),
        ("png", "PNG", base.convert("P"), {"transparency": 1}), ("png", "PNG", Image.fromarray(deep), {}),
        ("png", "PNG", base, {"save_all": True, "append_images": [base.convert("L").convert("RGB")]}),
        ("tiff", "TIFF", base, {}), ("tiff", "TIFF", base, {"compression": "tiff_lzw"}),
        ("tiff", "TIFF", Image.fromarray(deep), {}), ("tiff", "TIFF", base.convert("1"), {"compression": "group4"}),
        ("tiff", "TIFF", Image.fromarray(deep.astype(np.float32)), {}), ("webp", "WEBP", base, {}),
        ("tiff", "TIFF", base, {"compression": "jpeg"}), ("gif", "GIF", base, {}), ("bmp", "BMP", base, {}),
        ("ppm", "PPM", base, {}), ("tga", "TGA", base, {}), ("ico", "ICO", base, {}),
        ("sgi", "SGI", base, {}), ("pcx", "PCX", base, {}), ("qoi", "QOI", base, {}),
    ]  # fmt: skip
    if features.check("avif"):
        kinds.append(("avif", "AVIF", base, {}))
    if features.check("jpg_2000"):
        kinds += [("jp2", "JPEG2000", base, {}), ("j2k", "JPEG2000", Image.fromarray(deep), {"no_jp2": True})]
    for ending, name, image, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        yield buffer.getvalue(), ending
    for channels, kind in ((3, 2), (2, 4), (4, 6)):
        yield encode_png((colour[..., :channels] * 16).astype(np.uint16), kind), "png"
    wide = (colour * 16).astype(np.uint16)
    yield b"P6\n40 32\n4095\n" + wide[..., :3].astype(">u2").tobytes(), "ppm"
    for values, tags in (
        (np.moveaxis(wide[..., :3], -1, 0), {"planarconfig": "separate", "photometric": "rgb", "compression": "zlib"}),
        (wide, {"photometric": "rgb", "tile": (16, 16), "compression": "zlib", "predictor": 2}),
        (colour[..., 0], {"bigtiff": True}), (wide, {"photometric": "separated", "byteorder": ">"}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, **tags)
        yield buffer.getvalue(), "tiff"
    yield from _encode_dicom(deep, base)


def encode_png(image: np.ndarray[Any, np.dtype[np.uint16]], kind: int, size: tuple[int, int] | None = None) -> bytes:
    """Encode 16-bit (H, W, C) as PNG of colour type `kind`, which Pillow cannot; `size` sets false width and height."""
    width, height = size or (image.shape[1], image.shape[0])

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in image)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def _encode_dicom(deep: np.ndarray[Any, Any], image: Image.Image) -> Iterator[tuple[bytes, str]]:
    grey = np.asarray(image.convert("L"))
    eight: dict[str, Any] = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    window = Dataset()
    window.WindowCenter, window.WindowWidth = 500, 900
    frame = Dataset()
    frame.FrameVOILUTSequence = [window]
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", **eight}
    for name in ("Red", "Green", "Blue"):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        palette[f"{name}PaletteColorLookupTableData"] = np.arange(256, dtype="<u2").tobytes()
    yield save_dicom(deep, WindowCenter=500, WindowWidth=900), "dcm"
    yield save_dicom(deep, RescaleSlope=2, RescaleIntercept=-5, PixelPaddingValue=7), "dcm"
    yield save_dicom(np.stack([deep, deep]), NumberOfFrames=2, SharedFunctionalGroupsSequence=[frame]), "dcm"
    yield save_dicom(grey, **palette), "dcm"
    for syntax, name, options in (
        (JPEGBaseline8Bit, "JPEG", {}), (JPEG2000Lossless, "JPEG2000", {"no_jp2": True}), (RLELossless, "", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        if name:
            image.convert("L").save(buffer, name, **options)
            yield save_dicom(grey, syntax=syntax, data=encapsulate([buffer.getvalue()]), **eight), "dcm"
        else:
            dataset = pydicom.dcmread(io.BytesIO(save_dicom(deep)))
            dataset.compress(syntax)
            dataset.save_as(buffer)
            yield buffer.getvalue(), "dcm"
    intact = save_dicom(deep)
    yield intact[132:], "dcm"
    (length,) = struct.unpack_from("<L", intact, 140)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = save_dicom(deep, syntax=pydicom.uid.UID("1.2.840.10008.1.2.1.99"), meta_only=True)
    yield head + packer.compress(intact[144 + length :]) + packer.flush(), "dcm"


def save_dicom(
    stored: np.ndarray[Any, Any], *, syntax: Any = ExplicitVRLittleEndian, data: bytes = b"", meta_only: bool = False,
    **attributes: Any,
) -> bytes:  # fmt: skip
    """Encode stored values as DICOM, by default 12 bits grey."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["fuzz"])
    rows, columns = stored.shape[-2:]
    standard = {
        "Modality": "DX", "PatientID": "P1", "Rows": rows, "Columns": columns, "SamplesPerPixel": 1, "HighBit": 11,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 12, "PixelRepresentation": 0,
    }  # fmt: skip
    for keyword, value in (standard | attributes).items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    if meta_only:
        pydicom.filewriter.write_file_meta_info(buffer, dataset.file_meta)
        return bytes(128) + b"DICM" + buffer.getvalue()
    dataset.PixelData = data or stored.tobytes()
    if data:
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # each thread reserves address space
    main()
