"""One module a command, and what their parsers share."""
