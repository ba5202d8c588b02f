"""One solver a file, which imports it and is imported when it is asked for: what it takes to solve
the same problem with it."""
