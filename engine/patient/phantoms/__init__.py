"""Spines of known shape, and CT scans of them, with their true values."""
