"""What a training did, to be looked at: one page, readable from disk, and its figures for papers."""
