"""Measure speed and memory of the fast path, variant by variant and against peers; the README's numbers."""
