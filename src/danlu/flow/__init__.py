"""Recipes: a list of stages in a YAML file, run in order, each result an artifact."""
