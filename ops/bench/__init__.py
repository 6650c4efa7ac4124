"""Benchmarks: each prints a ratio against something run in the same call."""
