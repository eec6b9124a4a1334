"""What holds for every request to the review page: who asks, the token of writes, and the headers of answers."""

import hmac
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from med_assets.errors import ConfigurationError
from med_assets.review.access import Session, reader_name
from med_assets.review.site import MAX_FORM_BYTES, Site, bounded_body, parsed_form, refused
from med_assets.serving.binding import is_addressed_to
from med_assets.storage.files import digest

READING = ("GET", "HEAD")

OPEN_PATHS = ("/login",)
"""Paths for those who are not known yet; scripts and styles beside them, which say nothing of a case."""

TOKEN_FIELD, TOKEN_HEADER = "token", "x-review-token"
"""Where a write holds the token of its session: a field of a form, or a header of a script."""

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data: blob:", "connect-src 'self'",
        "font-src 'self'", "worker-src 'self'", "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'",
    )
)  # fmt: skip
"""No script and no style but those of the package: text that a page shows can do nothing, even where it were markup."""

HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Gate:
    """Lets requests through whose reader is known, with the session in their scope; writes need its token.

    A cookie holds the id of the session. Every answer has HEADERS, and is not kept by the browser unless its route says so.
    """

    def __init__(self, app: ASGIApp, site: Site, names: tuple[str, ...]) -> None:
        self.app, self.site, self.names = app, site, names
        # Cookies are kept by name and not by port: servers of two homes on one machine have their own.
        self.cookie = f"med_assets_review_{digest(str(site.ws.home))[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, text in HEADERS.items():
                    headers.setdefault(name, text)
                headers.setdefault("cache-control", "no-store")
                session = scope.get("state", {}).get("session")
                if session is not None and request.cookies.get(self.cookie) != session.id:
                    headers.append("set-cookie", self._set_cookie(request, session))
            await send(message)

        response, receive = await self._passed(request, scope, receive)
        await (response or self.app)(scope, receive, send_with_headers)

    def _set_cookie(self, request: Request, session: Session) -> str:
        secure = "; Secure" if request.url.scheme == "https" or self._is_https_at_proxy(request) else ""
        return f"{self.cookie}={session.id}; Path=/; HttpOnly; SameSite=Strict{secure}"

    def _is_https_at_proxy(self, request: Request) -> bool:
        return self._trusted(request) and request.headers.get("x-forwarded-proto", "") == "https"

    def _trusted(self, request: Request) -> bool:
        """Whether a request came through a proxy whose headers count."""
        proxies = self.site.access.proxies
        return proxies is not None and request.client is not None and proxies.trust(request.client.host)

    async def _passed(self, request: Request, scope: Scope, receive: Receive) -> tuple[Response | None, Receive]:
        """A refusal or None, and from where the body of the request is read on."""
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        if self.site.access.is_local and not is_addressed_to(self.names, request.headers.get("host", "")):
            return refused(self.site, request, 421, "expected a request to this machine's own name"), receive
        is_static = request.url.path.startswith("/static/") and request.method in READING
        if is_static:
            return None, receive
        try:
            session = state["session"] = self._session(request)
        except HTTPException as error:
            return refused(self.site, request, error.status_code, error.detail), receive
        if request.method not in READING:
            try:
                receive = await self._with_token(request, session)
            except HTTPException as error:
                return refused(self.site, request, error.status_code, error.detail), receive
        if session.reader or request.url.path in OPEN_PATHS:
            return None, receive
        if request.method in READING and "x-partial" not in request.headers:
            return RedirectResponse(f"/login?next={quote(request.url.path, safe='/')}", 303), receive
        return refused(self.site, request, 401, "expected a reader who has logged in; log in again"), receive

    def _session(self, request: Request) -> Session:
        """The session of a request, a new one where there is none. Raises HTTPException for a request that no proxy names a reader of."""
        access, session = self.site.access, self.site.sessions.find(request.cookies.get(self.cookie, ""))
        if access.proxies is not None:
            reader = self._named_by_proxy(request.headers) if self._trusted(request) else ""
            if not reader:
                raise HTTPException(401, "expected a request through the reverse proxy, which names the reader")
            return session if session and session.reader == reader else self.site.sessions.start(reader)
        return session or self.site.sessions.start(access.reader if access.is_local else "")

    def _named_by_proxy(self, headers: Headers) -> str:
        assert self.site.access.proxies is not None
        given = headers.getlist(self.site.access.proxies.header)
        try:
            return reader_name(given[0]) if len(given) == 1 else ""
        except ConfigurationError:
            return ""

    async def _with_token(self, request: Request, session: Session) -> Receive:
        """From where the body of a write is read, once it was seen to hold the token of its session. Raises HTTPException."""
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise HTTPException(403, "expected a request from a page of this server")
        given = request.headers.get(TOKEN_HEADER)
        receive: Receive = request.receive
        if given is None:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/x-www-form-urlencoded":
                raise HTTPException(403, "expected the token of the session; load the page again")
            body = await bounded_body(request, MAX_FORM_BYTES)
            given = parsed_form(body).get(TOKEN_FIELD, "")
            receive = _replayed(body)
        if not hmac.compare_digest(given.encode(), session.token.encode()):
            raise HTTPException(403, "expected the token of the session; load the page again")
        return receive


def _replayed(body: bytes) -> Receive:
    """A body that was read, to be read again."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
