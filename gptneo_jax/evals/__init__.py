"""Evaluation of a model: perplexity, harness tasks, generated answers, contamination, reports."""
