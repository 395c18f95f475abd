"""Small inputs as people's files and machines are: a folder each, with its task and the right behaviour in words."""
