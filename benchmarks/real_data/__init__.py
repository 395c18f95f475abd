"""Tasks on real data, from their sources to a verdict: two columns, given splits, a chat, and rows on servers."""
