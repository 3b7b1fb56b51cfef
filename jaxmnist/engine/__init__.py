"""The training engine: pure training functions, lanes, compiled programs, devices, events."""
