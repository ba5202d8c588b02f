"""The body-fitted tetrahedral mesh: regions, fitting, repair, remeshing, quality."""
