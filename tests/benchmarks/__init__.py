"""Heavy measurements, run by hand: python -m tests.benchmarks.NAME"""
