"""Results of a search: run, selection, trained network, evaluation, statistics, features, SVM."""
