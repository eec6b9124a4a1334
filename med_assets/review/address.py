"""Where the review page is, for links to it."""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

REVIEW_URL = "MED_ASSETS_REVIEW_URL"
"""Variable with the address of the review page for links; empty for none. That of `make ui` unless set."""

PORT = 3001

DEFAULT_URL = f"http://127.0.0.1:{PORT}"


def review_url(program_name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The address of a program's worklist; empty where the setting is empty, or no address of a web page."""
    given = environ.get(REVIEW_URL, DEFAULT_URL)
    parts = urlsplit(given)
    return f"{given.rstrip('/')}/{program_name}/" if parts.scheme in ("http", "https") and parts.netloc else ""
