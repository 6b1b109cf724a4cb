"""Pairs from a model's own answers: sample, score, put together; and rounds of it."""
