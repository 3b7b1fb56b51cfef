"""What was found: a run read back, selection, the trained network, evaluation, features, SVM."""
