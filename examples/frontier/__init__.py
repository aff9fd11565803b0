"""The TDPO paper's experiment at the size of a laptop: what reward costs in KL, over objectives and seeds."""
