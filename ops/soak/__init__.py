"""Long runs: what stays open for days must not grow."""
