"""What is personal in a DICOM file, and which text may be shown beside it.

Names, dates and times are told by their value representation (PN, DA, DT), other personal tags by
their keyword. Their words are collected from every file; a text that shares one is withheld.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom.dataset import Dataset

from engine.patient.read.dicom.tags import BROKEN, text_of

_CONTOUR_DATA = 0x30060050
#: Personal besides names, dates and times.
_PERSONAL = frozenset(
    """
    PatientID OtherPatientIDs IssuerOfPatientID AccessionNumber StudyID AdmissionID PatientAddress
    PatientComments ImageComments AdditionalPatientHistory MedicalRecordLocator InstitutionName
    InstitutionAddress InstitutionalDepartmentName StationName PatientTelephoneNumbers MilitaryRank
    Occupation EthnicGroup RequestingService CurrentPatientLocation PatientBirthName
    PatientReligiousPreference CountryOfResidence RegionOfResidence DeviceSerialNumber FrameComments
    StudyComments RequestedProcedureComments VisitComments FillerOrderNumberImagingServiceRequest
    PlacerOrderNumberImagingServiceRequest
    """.split()
)
#: A data set whose values of these were met already holds no new personal words.
_SERIES_TAGS = "PatientName PatientID AccessionNumber SeriesInstanceUID ImageComments".split()
#: Personal words shorter than this count only as a whole word of a text.
_SHORT_WORD = 3
#: Damaged elements are searched for words up to this length, bytes.
_LONGEST_DAMAGED = 1000


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's and highdicom's warnings away: they quote values, personal ones too."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for log in loggers:
                log.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


class Redaction:
    """The words of the personal tags of all files read so far, and texts without them."""

    def __init__(self) -> None:
        self._words: set[str] = set()
        self._known_series: set[tuple[str, ...]] = set()

    def learn(self, ds: Dataset) -> None:
        """Add the personal words of a data set; every element is searched once for each series,
        not for each slice."""
        series = tuple(text_of(ds, key) for key in _SERIES_TAGS)
        if series in self._known_series:
            return
        self._known_series.add(series)
        for personal, value in _elements(ds):
            if personal:
                self._words.update(_words(value))

    def withholds(self, text: str) -> bool:
        """Whether a text holds a word of a personal tag (short ones as a whole word), or looks
        like a date or a long number."""
        words = set(_words(text))
        joined = "".join(_words(text))
        if re.search(r"\d{1,4}[-./ ]\d{1,2}[-./ ]\d{2,4}|\d{6,}", text):
            return True
        return any(
            word in words or (len(word) >= _SHORT_WORD and (word in text.lower() or word in joined))
            for word in self._words
        )

    def redacted(self, text: str) -> str:
        """The text where it may be shown, else "(withheld)"."""
        return "(withheld)" if text and self.withholds(text) else text


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _elements(ds: Dataset) -> Iterator[tuple[bool, str]]:
    """Of every element at every depth whether it is personal, and its value as text. Damaged ones
    count as personal, by their bytes; contours (up to millions of numbers) are left out."""
    for tag in list(ds.keys()):
        if tag == _CONTOUR_DATA:
            continue
        try:
            element = ds[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _elements(item)
            else:
                personal = element.VR in ("PN", "DA", "DT") or element.keyword in _PERSONAL
                yield personal, str(element.value)
        except BROKEN:
            value = getattr(ds.get_item(tag), "value", None)
            if isinstance(value, bytes) and len(value) < _LONGEST_DAMAGED:
                yield True, value.decode("latin-1")
            else:
                yield True, ""
