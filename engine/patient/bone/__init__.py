"""Bone density from HU, or assumed: calibration, profiles, what HU cannot be."""
