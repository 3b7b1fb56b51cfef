"""The study's network; the only package that refers to its hyperparameters by name."""
