"""A weighting for tdpo that looks at how open a token was."""
