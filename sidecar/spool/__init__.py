"""Writes on disk before their 202, in SQLite, so that a killed sidecar delivers them."""
