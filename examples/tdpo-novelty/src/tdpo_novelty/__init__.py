"""Novelty of completions for tdpo: a statistic, and an objective that reads it."""
