"""Who may use the review page: sessions, tokens, logins, proxies, and what an answer lets a browser do."""

import ipaddress
import stat

import pytest

from med_assets.errors import ConfigurationError
from med_assets.review import access
from med_assets.review.access import (
    LOGINS,
    MAX_FAILURES,
    PROXY_HEADER,
    TRUSTED_PROXIES,
    Access,
    HashedPassword,
    Proxies,
    access_of,
    read_logins,
    reader_name,
    write_login,
)
from med_assets.settings import Workspace
from tests.med_assets.review.builders import CaseRow, add_cases, client, token_of

PASSWORD = "correct horse battery"
COST = access.SCRYPT_N, access.SCRYPT_R, access.SCRYPT_P
with pytest.MonkeyPatch.context() as _patch:
    _patch.setattr(access, "SCRYPT_N", 16)
    HASHED = HashedPassword.of(PASSWORD)
PROXIED = Access(proxies=Proxies("x-remote-user", (ipaddress.ip_network("10.1.0.0/16"),)))


def test_a_hash_has_the_cost_that_owasp_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "SCRYPT_N", COST[0])
    hashed = HashedPassword.of(PASSWORD)
    assert (hashed.n, hashed.r, hashed.p) == COST == (1 << 14, 8, 5)
    assert hashed.fits(PASSWORD)


def test_a_login_is_kept_as_a_hash_that_only_its_owner_reads(workspace: Workspace) -> None:
    path = write_login(workspace, "Ana", PASSWORD)
    write_login(workspace, "Ben", PASSWORD + "2")
    text = path.read_text()
    assert PASSWORD not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    logins = read_logins(path)
    assert logins["Ana"].fits(PASSWORD)
    assert not logins["Ana"].fits(PASSWORD + "2")
    assert logins["Ben"].fits(PASSWORD + "2")


@pytest.mark.parametrize("line", ["Ana", "Ana:plain", "Ana:scrypt$2$8$1$zz$00", "Ana:scrypt$1048576$8$1$00$00", ":x"])
def test_a_line_of_logins_that_is_none_is_refused_by_its_number(workspace: Workspace, line: str) -> None:
    path = write_login(workspace, "Ben", PASSWORD)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        read_logins(path)


@pytest.mark.parametrize("name", ["", " ", "a:b", "a\nb", "x" * 65, "a\u202eb"])
def test_a_name_that_no_one_could_read_in_the_record_is_none(name: str) -> None:
    with pytest.raises(ConfigurationError):
        reader_name(name)


def test_other_machines_need_logins_or_a_proxy(workspace: Workspace) -> None:
    assert access_of(workspace, "127.0.0.1", "me", {}) == Access(reader="me")
    with pytest.raises(ConfigurationError, match="review-login"):
        access_of(workspace, "0.0.0.0", "me", {})
    with pytest.raises(ConfigurationError, match="together"):
        access_of(workspace, "0.0.0.0", "me", {PROXY_HEADER: "X-Remote-User"})
    with pytest.raises(ConfigurationError, match=TRUSTED_PROXIES):
        access_of(workspace, "0.0.0.0", "me", {PROXY_HEADER: "X-Remote-User", TRUSTED_PROXIES: "all"})
    found = access_of(workspace, "0.0.0.0", "me", {PROXY_HEADER: "X-Remote-User", TRUSTED_PROXIES: "10.1.0.0/16, ::1"})
    assert found.proxies is not None
    assert found.proxies.trust("10.1.2.3")
    assert not found.proxies.trust("10.2.2.3")
    assert not found.proxies.trust("testclient")
    own = workspace.home / "elsewhere"
    write_login(workspace, "Ana", PASSWORD, {LOGINS: str(own)})
    assert set(access_of(workspace, "0.0.0.0", "me", {LOGINS: str(own)}).logins or {}) == {"Ana"}


def test_nothing_is_shown_before_a_login_and_a_wrong_password_opens_nothing(workspace: Workspace) -> None:
    browser = client(workspace, Access(logins={"Ana": HASHED}))
    refused = browser.get("/rt_dose/cases/a1")
    assert (refused.status_code, refused.headers["location"]) == (303, "/login?next=/rt_dose/cases/a1")
    assert browser.get("/", headers={"x-partial": "true"}).status_code == 401
    token = token_of(browser, "/login")
    before = dict(browser.cookies)
    for reader, password in (("Ana", "wrong"), ("Eve", PASSWORD)):
        answer = browser.post("/login", data={"token": token, "reader": reader, "password": password})
        assert answer.status_code == 401
        assert browser.get("/").status_code == 303
    answer = browser.post("/login?next=//evil.example/", data={"token": token, "reader": "Ana", "password": PASSWORD})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert dict(browser.cookies) != before, "the session of the login form is not that of the reader"
    assert "Ana" in browser.get("/").text
    assert browser.post("/logout", data={"token": token_of(browser)}).headers["location"] == "/login"
    assert browser.get("/").status_code == 303


def test_passwords_can_not_be_tried_without_end(workspace: Workspace) -> None:
    browser = client(workspace, Access(logins={}))
    token = token_of(browser, "/login")
    login = {"token": token, "reader": "Ana", "password": "x"}
    statuses = [browser.post("/login", data=login).status_code for _ in range(MAX_FAILURES + 1)]
    assert statuses == [401] * MAX_FAILURES + [429]


def test_the_header_of_a_proxy_counts_from_that_proxy_alone(workspace: Workspace) -> None:
    named = {"X-Remote-User": "Ana"}
    assert "Ana" in client(workspace, PROXIED, "10.1.0.9").get("/", headers=named).text
    assert client(workspace, PROXIED, "10.2.0.9").get("/", headers=named).status_code == 401
    assert client(workspace, PROXIED, "10.1.0.9").get("/").status_code == 401
    twice = [("X-Remote-User", "Ana"), ("X-Remote-User", "Eve")]
    assert client(workspace, PROXIED, "10.1.0.9").get("/", headers=twice).status_code == 401
    without = client(workspace, Access(logins={"Ana": HASHED}), "10.1.0.9")
    assert without.get("/", headers=named).status_code == 303, "where no proxy is configured its header means nothing"


def test_a_session_of_one_reader_is_not_that_of_the_next(workspace: Workspace) -> None:
    browser = client(workspace, PROXIED, "10.1.0.9")
    browser.get("/", headers={"X-Remote-User": "Ana"})
    ana = dict(browser.cookies)
    assert "Ben" in browser.get("/", headers={"X-Remote-User": "Ben"}).text
    assert dict(browser.cookies) != ana


def test_a_write_without_the_token_of_its_session_is_refused(workspace: Workspace) -> None:
    browser, other = client(workspace), client(workspace)
    token = token_of(browser)
    assert token != token_of(other)
    form = {"content-type": "application/x-www-form-urlencoded"}
    for data, headers, status in (
        ({}, form, 403),
        ({"token": token_of(other)}, form, 403),
        ({"token": ""}, form, 403),
        ({"token": token}, {**form, "sec-fetch-site": "cross-site"}, 403),
        ({"token": token}, {"content-type": "text/plain"}, 403),
        ({}, {b"x-review-token": "é".encode()}, 403),
        ({}, {"x-review-token": token}, 303),
    ):
        body = "&".join(f"{name}={text}" for name, text in data.items())
        assert browser.post("/logout", content=body, headers=headers).status_code == status, (data, headers)
    assert browser.post("/logout", data={"token": token_of(browser)}).status_code == 303


def test_the_cookie_is_for_this_server_and_no_script(workspace: Workspace) -> None:
    cookie = client(workspace).get("/").headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    https = {"X-Remote-User": "Ana", "X-Forwarded-Proto": "https"}
    assert "Secure" in client(workspace, PROXIED, "10.1.0.9").get("/", headers=https).headers["set-cookie"]


@pytest.mark.parametrize("path", ["/", "/no/such/path", "/static/review.css", "/rt_dose/cases/unknown"])
def test_every_answer_forbids_frames_and_foreign_scripts(workspace: Workspace, path: str) -> None:
    headers = client(workspace).get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:3001"])
def test_a_name_that_is_not_this_machine_s_gets_nothing(workspace: Workspace, host: str) -> None:
    assert client(workspace).get("/", headers={"host": host}).status_code == 421
    assert client(workspace).get("/", headers={"host": "localhost:3001"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/..%5capp.py",
        "/rt_dose/cases/..%2f..%2fetc", "/rt_dose/cases/%2e%2e", "/..%2frt_dose/cases/a1", "/RT_DOSE/cases/a1", "/rt_dose/cases/a%00",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_what_is_served(workspace: Workspace, path: str) -> None:
    answer = client(workspace).get(path, follow_redirects=True)
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_a_form_that_is_too_large_is_not_read(workspace: Workspace) -> None:
    browser = client(workspace)
    token = token_of(browser)
    assert browser.post("/logout", data={"token": token, "more": "x" * 70_000}).status_code == 413
    assert browser.post("/logout", data={"token": token} | {f"f{n}": "" for n in range(200)}).status_code == 400


MARKUP = "<script>alert(1)</script>\"><img src=x onerror=alert(2)>'\u202e"


def test_text_from_outside_is_no_markup(workspace: Workspace) -> None:
    add_cases(workspace, "rt_dose", [CaseRow("a1", warnings=MARKUP)])
    page = client(workspace, Access(reader="<b>reader</b>")).get("/rt_dose/cases/a1").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>reader" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "\\u202e" in page
