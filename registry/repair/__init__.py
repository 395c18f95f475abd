"""Compare ledger, store and MLflow, and bring them together."""
