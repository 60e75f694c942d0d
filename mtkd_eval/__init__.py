"""Evaluation: networks from any file of weights, what they score on test sets and what they cost."""
