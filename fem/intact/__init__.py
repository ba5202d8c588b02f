"""The intact segment at finite strain: disc, fibres, ligaments, facets."""
