"""DICOM, through the extra `dicom`: from stored values to those that a radiologist would see."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset


def read_dicom(path: Path) -> tuple[NDArray[Any], str, int, tuple[str, ...]]:
    """Reads a DICOM file's first frame: (H, W) grey values of any range, or (H, W, 3) RGB uint8.

    Grey values pass the modality LUT or rescale (PS3.3 C.11.1), the VOI LUT or the first window where there is one
    (C.11.2), and are inverted for MONOCHROME1. Padding pixels take the darkest value.

    Returns:
        The values, `DICOM <photometric interpretation>`, bits stored, and what was done.

    Raises:
        ImageError: the extra is not installed, or the file has no image.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
    except ModuleNotFoundError as error:
        raise ImageError(f"{path} is DICOM", "Install what reads it: pip install 'convnext-cli[dicom]'") from error
    pydicom.config.logger.setLevel("ERROR")
    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset:
        raise ImageError(f"{path} is DICOM without an image ({dataset.get('Modality', 'no modality')})", "Remove it")
    frames = int(dataset.get("NumberOfFrames") or 1)
    kind, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsStored)
    stored = pixel_array(dataset, index=0 if frames > 1 else None)  # YBR becomes RGB here
    done = [f"first of {frames} frames"] if frames > 1 else []
    if stored.ndim == 3:
        if stored.dtype != np.uint8:
            raise ImageError(f"{path} has {bits}-bit colour", "Export it with 8 bits")
        return stored, f"DICOM {kind}", bits, tuple(done)
    padding = _find_padding(dataset, stored)
    values: NDArray[Any] = np.asarray(apply_modality_lut(stored, dataset))
    is_windowed = "VOILUTSequence" in dataset or "WindowCenter" in dataset
    if is_windowed:
        done.append("VOI LUT" if "VOILUTSequence" in dataset else "windowed as the file says")
        values = np.asarray(apply_voi_lut(values, dataset))
    values = values.astype(np.float64)
    seen = values[~padding] if not padding.all() else values
    if not is_windowed:
        done.append(f"stretched from {seen.min():g}..{seen.max():g}")
    if kind == "MONOCHROME1":
        done.append("inverted (MONOCHROME1)")
        values, seen = -values, -seen
    values[padding] = seen.min()
    return values, f"DICOM {kind}", bits, tuple(done)


def read_tag(path: Path, keyword: str) -> str | None:
    """A DICOM attribute such as PatientID as text; None where the file has none, or is no DICOM.

    Raises:
        ImageError: the extra is not installed.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ModuleNotFoundError as error:
        raise ImageError(f"{path} is DICOM", "Install what reads it: pip install 'convnext-cli[dicom]'") from error
    try:
        value = pydicom.dcmread(path, specific_tags=[keyword], stop_before_pixels=True).get(keyword)
    except (OSError, InvalidDicomError, ValueError, KeyError):
        return None
    return None if value in (None, "") else str(value)


def _find_padding(dataset: "Dataset", stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the scanner filled up the frame (PS3.3 C.7.5.1.1.2): one value, or a range of them."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit", first)
    return np.asarray((stored >= min(first, last)) & (stored <= max(first, last)))
