"""Unusual cases by uncertainty."""
