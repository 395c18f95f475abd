"""What a person declares: the task file, its recipe, its gate policy, and the YAML reader that knows line numbers."""
