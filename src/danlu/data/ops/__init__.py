"""Operators on rows: one file each, exporting ``plugin`` (a data.pipeline.Operator)."""
