"""Evaluation: run a task on any ``LanguageModel``, score it with intervals, compare two models on the same items."""
