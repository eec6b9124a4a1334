"""The champion on every batch, and drift of measured facts."""
