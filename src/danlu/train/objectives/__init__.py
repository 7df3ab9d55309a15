"""What a model is asked about text that has no labels: the next token, hidden tokens, missing spans, the whole again.

What is hidden is a function of ids and a random generator, on numpy arrays; only ``asked.py`` knows tensors.
"""
