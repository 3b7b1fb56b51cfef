"""One module for each command, and what their parsers share."""
