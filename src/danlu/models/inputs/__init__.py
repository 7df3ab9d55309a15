"""Inputs: one file each, what comes in becomes embeddings."""
