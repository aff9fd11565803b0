"""Stage two: a policy trained from the cache with transformers' Trainer around our scoring."""
