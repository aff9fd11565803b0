"""A hinge loss for tdpo, as a distribution of its own."""
