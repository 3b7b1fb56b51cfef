"""Networks as functions of their hyperparameters; the only package that uses Flax."""
