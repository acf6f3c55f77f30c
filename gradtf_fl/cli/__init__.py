"""One small file per verb; the only room that imports every other room (and only when a verb runs)."""
