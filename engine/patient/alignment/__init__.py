"""Alignment of a disc space and of the spine, and what norms and rules ask of it."""
