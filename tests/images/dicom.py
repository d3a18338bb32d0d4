"""DICOM files for tests."""

from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

XRAY = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits in 16


def save_dicom(path: Any, stored: np.ndarray[Any, Any], **attributes: Any) -> Any:
    """Write stored values as DICOM, by default 12 bits grey."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=["test"])
    rows, columns = stored.shape[-2:] if attributes.get("SamplesPerPixel", 1) == 1 else stored.shape[:2]
    standard = {
        "Modality": "DX", "PatientID": "P1", "Rows": rows, "Columns": columns, "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 12, "PixelRepresentation": 0,
    }  # fmt: skip
    for keyword, value in (standard | attributes).items():
        setattr(dataset, keyword, value)
    if "HighBit" not in attributes:
        dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = stored.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path
