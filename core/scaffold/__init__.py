"""A plugin to start from: a complete distribution, written by ``tdpo plugins new``."""
