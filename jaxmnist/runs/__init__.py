"""The run directory: its files, lock, trial records and ledger, and how they are written."""
