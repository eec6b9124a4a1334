"""The S3 side of the landing zone and of the artifact store.

boto3 signs, retries and speaks to the server. What stands here is what it lacks: bodies checked against length, ETag or
SHA-256, downloads that go on where they stopped, a cache with a limit, a cached key index, and failures as rows.
"""
