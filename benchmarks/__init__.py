"""Benchmarks: ratios within one run, stored as JSON."""
