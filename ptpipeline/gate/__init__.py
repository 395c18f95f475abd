"""Policy and evidence to a verdict, check by check; pure functions."""
