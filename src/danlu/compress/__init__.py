"""Compression: a model folder in, a smaller model folder and a report out."""
