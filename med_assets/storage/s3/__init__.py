"""The S3 side of the landing zone and of the artifact store.

boto3 signs, retries and speaks to the server. What stands here is what it lacks: bodies checked against length, ETag or
SHA-256, downloads that go on where they stopped, a cache with a limit, a cached key index, and failures as rows.

s3transfer does the uploads. For downloads its retries are not enough: behind a proxy that damages one body in ten it returned 5 of 61
objects with wrong bytes and no error (`staging` none), and a download that broke off begins anew.
"""
