"""What speaks for the models: code verification, published experiments, convergence,
sensitivity, readers."""
