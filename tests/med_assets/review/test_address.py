"""Where links to the review page lead."""

import pytest

from med_assets.review.address import REVIEW_URL, review_url


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "http://127.0.0.1:3001/rt_dose/"),
        ({REVIEW_URL: "https://review.example/cases/"}, "https://review.example/cases/rt_dose/"),
        ({REVIEW_URL: ""}, ""),
        ({REVIEW_URL: "javascript:alert(1)"}, ""),
        ({REVIEW_URL: "//review.example"}, ""),
    ],
)
def test_links_lead_to_the_configured_page_or_that_of_this_machine(environ: dict[str, str], address: str) -> None:
    assert review_url("rt_dose", environ) == address
