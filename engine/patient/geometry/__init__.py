"""Geometry that anatomy, readers and phantoms share: frames, distances, meshes, names of levels."""
