"""The random search and the state of its trials."""
