"""Prefect's REST side, and the address that MLflow posts edits to."""
