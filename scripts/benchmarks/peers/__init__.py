"""One solver a file: what it takes to solve the same problem with it."""
