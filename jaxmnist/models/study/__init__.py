"""The study's network; the only room that knows its hyperparameters by name."""
