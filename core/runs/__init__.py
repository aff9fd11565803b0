"""The folder of a run: what is written into it, what a resumed run is held to, and what is read of it."""
