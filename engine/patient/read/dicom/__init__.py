"""DICOM: series, segmentations and structure sets, without the patient's name."""
