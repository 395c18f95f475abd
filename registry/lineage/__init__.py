"""Where a version comes from, and what learnt from which row."""
