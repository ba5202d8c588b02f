"""From a field to a part: surface, lattice, drawing, files."""
