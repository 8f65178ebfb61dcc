"""Faster ways to the same numbers.

Each is a context manager that can be left out (`trainer.fit` lists them), with a test that on and off are equal, and a figure
of its own: `python -m tests.benchmarks.speedups`.
"""
