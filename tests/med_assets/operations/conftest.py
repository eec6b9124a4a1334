"""The endpoint of S3 of other tests, for homes and backups in a bucket."""

from tests.med_assets.s3.conftest import endpoint, faults, good, name, short_back_off

__all__ = ["endpoint", "faults", "good", "name", "short_back_off"]
