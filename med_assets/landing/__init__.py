"""Where cases arrive: a folder or a bucket, what has settled, and batches."""
