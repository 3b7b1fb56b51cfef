"""Networks as functions of their hyperparameters; the only room that knows Flax."""
