"""What lies on disk: rows in SQLite, whole or absent, and a cache that may be deleted."""
