"""A trained policy looked at: what it says of cached pairs, and how sure one may be of it."""
