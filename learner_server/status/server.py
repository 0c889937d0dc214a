"""The status page's HTTP server: four files and two answers in JSON, on a thread of its own."""

import asyncio
import base64
import hmac
import json
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from aiohttp import web

from impala.addresses import LOOPBACK_HOSTS, split_address
from impala.errors import ConfigError
from learner_server.status.feed import StatusFeed

_PAGE = Path(__file__).parent / "page"
_FILES = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}
_HEADERS = {
    # Nothing from elsewhere, and nobody else's frame.
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="impala learner, any name, the token as password", charset="UTF-8"'}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StatusServer:
    """Answers browsers on `address` until closed.

    Args:
        address: HOST:PORT; port 0 takes a free one.
        token: that callers must give, as a bearer token or as the password that a browser asks for; None for none.
        context: for TLS; None answers in clear.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(self, address: str, feed: StatusFeed, *, token: str | None = None, context: ssl.SSLContext | None = None) -> None:
        self._host, port = split_address(address, field="status")
        self._feed = feed
        self._token = token
        self._loop = asyncio.new_event_loop()
        self._started: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(address, port, context), name="status", daemon=True)
        self._thread.start()
        try:
            self.port = self._started.result()
        except BaseException:
            self._thread.join()
            raise

    def close(self) -> None:
        """Stops answering and joins the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, address: str, port: int, context: ssl.SSLContext | None) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application(middlewares=[self._guarded], client_max_size=1024)
        for path in _FILES:
            application.router.add_get(path, self._file)
        application.router.add_get("/status.json", self._status)
        application.router.add_get("/history.json", self._history)
        # Without a log of every request, of which an open page makes one a second.
        runner = web.AppRunner(application, access_log=None, keepalive_timeout=15.0)
        try:
            self._started.set_result(self._loop.run_until_complete(_listen(runner, self._host.strip("[]"), port, context)))
        except OSError as error:
            self._started.set_exception(ConfigError(f"status: cannot listen on {address}: {error.strerror or error}"))
        else:
            self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._token is None and not self._names_this_host(request):
            # A page from elsewhere whose name was made to mean this machine would read what only this machine may.
            raise web.HTTPForbidden(text="host: expected the address that --status names\n", headers=_HEADERS)
        if self._token is not None and not _holds(request, self._token):
            raise web.HTTPUnauthorized(text="authorization: expected the learner's token\n", headers=_HEADERS | _CHALLENGE)
        response = await handler(request)
        response.headers.update(_HEADERS)
        return response

    def _names_this_host(self, request: web.Request) -> bool:
        if self._host not in LOOPBACK_HOSTS:
            return True  # --insecure: whoever is on that network may
        name = request.host.rpartition(":")[0] if request.host.rpartition(":")[2].isdigit() else request.host
        return name in LOOPBACK_HOSTS

    async def _file(self, request: web.Request) -> web.Response:
        name, content_type = _FILES[request.path]
        return _compressed(web.Response(body=(_PAGE / name).read_bytes(), content_type=content_type, charset="utf-8"))

    async def _status(self, _: web.Request) -> web.Response:
        return _json(self._feed.status())

    async def _history(self, _: web.Request) -> web.Response:
        return _json(self._feed.history())


async def _listen(runner: web.AppRunner, host: str, port: int, context: ssl.SSLContext | None) -> int:
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=context)
    await site.start()
    return int(runner.addresses[0][1])


def _holds(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            return False
    elif scheme.lower() != "bearer":
        return False
    # In constant time: how long a comparison takes must not tell how much of a guess was right.
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _json(values: Any) -> web.Response:
    # What is not finite is null in JSON, as in metrics.jsonl.
    text = json.dumps(_finite(values), separators=(",", ":"), allow_nan=False)
    return _compressed(web.Response(text=text, content_type="application/json"))


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not -float("inf") < values < float("inf") else values


def _compressed(response: web.Response) -> web.Response:
    response.enable_compression()
    return response
