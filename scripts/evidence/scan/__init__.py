"""The reconstruction against scans of known truth."""
