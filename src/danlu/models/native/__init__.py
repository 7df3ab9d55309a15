"""A decoder's or encoder's pass on a CPU in C: the network becomes a list of few kinds of operations, run by threads.

build.py compiles the sources beside it on first use, kernels.py loads them, program.py writes the list, executor.py
runs it over pages of keys and values, tower.py over whole rows. Where any of it is not possible, torch does the work.
"""
