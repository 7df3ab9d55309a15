"""Losses as plain functions of tensors. Each returns a sum and its docstring says what to divide it by.

A sum over rows, pairs or tokens is the same however a batch is split; the one division, by the number over all
micro-batches and ranks, is the training loop's. Nothing here knows a loop, an optimiser or a file.
"""
