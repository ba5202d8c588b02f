"""The compiled solver: C++ sources, built on first use."""
