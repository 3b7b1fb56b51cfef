"""The run directory: its lock, its records, its ledger; which files a run has, and writing them."""
