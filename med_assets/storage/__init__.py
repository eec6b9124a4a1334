"""Hashing, atomic files, locks, the artifact store, the table store and buckets."""
