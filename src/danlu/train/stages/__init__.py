"""One training task a file; each owns its loop."""
