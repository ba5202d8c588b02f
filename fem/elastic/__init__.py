"""Linear elasticity on tetrahedra: operators, factorisation, faces, contact."""
