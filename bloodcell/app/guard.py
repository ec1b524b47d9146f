"""What stands between the network and Gradio: only the requests that the page makes, of bounded size, from itself."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from bloodcell.app.login import Login
from bloodcell.app.uploads import Uploads

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
READ = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
"""Beginnings of paths that may be read. Gradio has many more routes: some fetch addresses that a visitor names, some
give files of this machine; the page needs none of them."""

READ_EXACTLY = frozenset(
    {"/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt"}
    | {f"{API}/{name}" for name in ("info", "queue/data", "upload_progress", "startup-events", "app_id")}
)
UPLOAD = f"{API}/upload"
JOIN = f"{API}/queue/join"
POSTS = {UPLOAD, JOIN, f"{API}/cancel", f"{API}/reset"}
QUESTION_BYTES = 1 << 20
"""Of a request that is no upload."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""A browser that keeps it asks no other host for anything. Gradio's templates are compiled in the browser."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class TooLargeError(Exception):
    """A body is larger than it may be."""


class Guard:
    """An ASGI application around Gradio's.

    Args:
        app: what answers the requests that pass.
        uploads: where the files of a question may lie.
        login: who may see the page; None is everybody.
        most: bytes of an upload.
    """

    def __init__(self, app: App, uploads: Uploads, login: Login | None, most: int) -> None:
        self._app, self._uploads, self._login, self._most = app, uploads, login, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it pass."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._bounded(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        path = scope["path"]
        if self._login is not None and not self._login.admits(headers.get("authorization", "")):
            return 401, "a name and a password are needed"
        if scope["method"] in ("GET", "HEAD"):
            known = path in READ_EXACTLY or (path.startswith(READ) and ".." not in path)
            return None if known else (404, "there is no such page")
        if scope["method"] != "POST" or path.rstrip("/") not in POSTS:
            return 404, "there is no such page"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            return 403, "the page of another site may not ask here"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._limit(path):
            return 413, f"too much at once: an upload may have {self._most / 1e6:,.0f} MB"
        return None

    def _limit(self, path: str) -> int:
        return self._most if path.rstrip("/") == UPLOAD else QUESTION_BYTES

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the body on, counted; that of a question is read whole, for it names files."""
        limit, path = self._limit(scope["path"]), scope["path"].rstrip("/")
        taken = 0
        begun = False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if scope["method"] == "POST" and path != UPLOAD:
                body, more = b"", True
                while more:
                    message = await counted()
                    if message["type"] == "http.disconnect":
                        return
                    body, more = body + message.get("body", b""), message.get("more_body", False)
                if not self._harmless(body):
                    await _answer(send, 403, "only files that were uploaded here can be asked about")
                    return
                await self._app(scope, _repeated(body, receive), send)
                return
            await self._app(scope, counted, noted)
        except TooLargeError:
            if not begun:
                await _answer(send, 413, f"too much at once: an upload may have {self._most / 1e6:,.0f} MB")

    def _harmless(self, body: bytes) -> bool:
        """Whether every file that a question names was uploaded; Gradio would fetch any address and read any file."""
        if not body:
            return True
        try:
            named = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return False
        return all(isinstance(path, str) and self._uploads.holds(path) for path in named)


def _paths(value: Any) -> Iterator[Any]:
    """Yield what stands under `path` anywhere in a JSON value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "path":
                yield inner
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


def _repeated(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body once, and then what the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def headed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return headed


async def _answer(send: Send, status: int, text: str) -> None:
    """Send a short answer in the form that Gradio's client shows to people."""
    body = json.dumps({"detail": text, "error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="bloodcell", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
