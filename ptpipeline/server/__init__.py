"""HTTP in front of the prompts: who may ask, how much, and in which form."""
