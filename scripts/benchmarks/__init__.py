"""The solver against its peers, in one run."""
