"""From staged bytes to a version, and from a version to an alias that readers follow."""
