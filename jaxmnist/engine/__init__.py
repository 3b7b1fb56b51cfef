"""Where trials train: pure training functions, lanes, compiled programs, devices, events."""
