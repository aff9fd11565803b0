"""A command for tdpo that looks at the lengths of a cache's pairs."""
