"""The two stages, building a cache and fitting a policy, and what they share."""
