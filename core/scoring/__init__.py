"""From token ids to per-token statistics at completion positions, for reference and policy alike."""
