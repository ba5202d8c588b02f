"""Many runs: grids and searches over configurations, and what launches them."""
