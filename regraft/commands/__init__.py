"""One file a command: its options, one call to the Python API, and the tables that it prints."""
