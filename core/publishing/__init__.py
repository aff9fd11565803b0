"""Publishing a run: what of it goes, its card with what was found of it, and where it goes."""
