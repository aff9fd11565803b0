"""Statistics added to a cache after it was built: sets of columns beside the shards, joined by pair_id."""
