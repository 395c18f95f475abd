"""What a person asks for, outside of a night; no Prefect."""
