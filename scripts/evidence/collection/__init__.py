"""Inputs that people really have, each with what must be said of it."""
