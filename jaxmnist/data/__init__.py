"""Loading datasets from files or by name, and pictures for prediction."""
