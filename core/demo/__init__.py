"""``tdpo demo``: a controlled-sentiment experiment at the size of a laptop, with nothing downloaded."""
