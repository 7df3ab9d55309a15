"""Heads: one file each, hidden states in, the task's answer out."""
