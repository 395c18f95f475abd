"""The only code that imports mlflow."""
