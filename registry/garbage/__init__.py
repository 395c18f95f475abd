"""What nothing needs any more, and its collection."""
