"""The command line: one verb a file, each with a function ``command``; main.py finds them, display.py draws."""
