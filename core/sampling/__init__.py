"""Preference data out of a model: completions drawn, scored, and paired by how far apart they are."""
