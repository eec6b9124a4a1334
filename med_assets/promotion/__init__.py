"""The gate, the champion and its history."""
