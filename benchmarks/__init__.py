"""Figures with their opponents, measured in one run: `make bench`, or `python -m benchmarks [case ...]`."""
