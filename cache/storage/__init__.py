"""Where a cache lies: a folder on this machine or at a URL, its files and its lock."""
