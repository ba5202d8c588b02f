"""Nothing of a personal tag reaches a note, the source, an error, a log line or a warning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from engine.patient.read.images import read_image
from tests.patient.dicom_files import (
    series,
)
from tests.patient.linear_images import (
    SHAPE,
)

SECRETS = {
    "PatientName": "Quenneville^Odalys",
    "PatientID": "ZX81-4711",
    "OtherPatientIDs": "OTHERID9",
    "PatientBirthDate": "19530929",
    "StudyDate": "20230611",
    "AcquisitionDateTime": "20230611113344",
    "InstitutionName": "Klinikum Nordhafen",
    "InstitutionAddress": "Deichweg 12",
    "StationName": "STATIONX7",
    "ReferringPhysicianName": "Brandtner^Ilse",
    "PerformingPhysicianName": "Vollrath^Uwe",
    "OperatorsName": "Kesselring",
    "AccessionNumber": "ACC889900",
    "StudyID": "STUDY55",
    "PatientComments": "fell off a horse",
    "ImageComments": "wheezes loudly",
    "StudyDescription": "Odalys follow-up",
    "ProtocolName": "Quenneville protocol",
    "PatientAddress": "Gorsestrasse",
    "DeviceSerialNumber": "SER123987",
    "RequestedProcedureDescription": "for Dr Brandtner",
}


def personal(ds: Dataset, k: int) -> None:
    for key, value in SECRETS.items():
        setattr(ds, key, value)
    ds.SeriesDescription = "Odalys Quenneville spine"
    ds.ManufacturerModelName = "Nordhafen Special"
    ds.ConvolutionKernel = "quenneville"
    ds.SeriesNumber = 4711
    item = Dataset()
    item.PatientID, item.PatientName = "NESTED42", "Nestor"
    ds.OtherPatientIDsSequence = Sequence([item])
    block = ds.private_block(0x0029, "HIDDEN CREATOR", create=True)
    block.add_new(1, "LO", "privatevalue")


def assert_no_secret(text: str, folder: Path) -> None:
    text = text.replace(str(folder), "").lower()
    more = ["nested42", "nestor", "hidden", "privatevalue"]
    for word in [
        w for value in SECRETS.values() for w in re.findall(r"\w+", value.lower()) if len(w) > 3
    ] + more:
        assert word not in text, (word, text)


def test_no_personal_tag_gets_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    named = tmp_path / "named"
    series(named, edit=personal, names=lambda n: f"Quenneville_{n:03d}.dcm")
    image = read_image(named)
    assert_no_secret(repr(image.source) + repr(image.notes), named)
    assert (
        image.source["Manufacturer"] == "Acme" and image.source["ConvolutionKernel"] == "(withheld)"
    )

    def refused(path: Path = named, **options: Any) -> str:
        with pytest.raises(ValueError) as error:
            read_image(path, **options)
        assert error.value.__cause__ is None
        assert_no_secret(str(error.value), named)
        return str(error.value)

    assert "(withheld)" in refused(series="Quenneville, Odalys")
    files = sorted(named.iterdir())
    assert "a single slice" in refused(files[0])
    kept = [file.read_bytes() for file in files]
    # differing duplicate, damaged values in number tags, missing slice, missing rescale,
    # truncation, another series
    ds = pydicom.dcmread(files[0])
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(named / "Odalys.dcm")
    assert "differ in content" in refused() and "file 1 of 10" in refused()
    (named / "Odalys.dcm").unlink()
    files[3].write_bytes(kept[3].replace(b"-1024", b"Nesto"))
    assert "without RescaleSlope" in refused()
    files[3].write_bytes(kept[3][:-50])
    assert "cut short" in refused()
    files[3].write_bytes(kept[3][:500])
    assert "file 4 of 9" in refused()
    files[3].write_bytes(kept[3])
    inner = int(np.random.default_rng(1).permutation(SHAPE[2])[4])
    files[inner].unlink()
    assert "1 of 9 slices are missing" in refused()
    files[inner].write_bytes(kept[inner])
    series(named / "more", uid="1.2.826.0.1.3680043.8.498.9", edit=personal)
    assert "2 series" in refused() and "CT (withheld)" in refused()
    assert not caplog.records and not [w for w in recwarn if "pydicom" in str(w.filename)]
