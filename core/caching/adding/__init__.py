"""Adding statistics to a finished cache."""
