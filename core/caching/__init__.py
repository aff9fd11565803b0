"""Stage one and the care of what it leaves: building caches, checking them, adding to them."""
