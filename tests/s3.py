"""S3 on loopback for tests: moto behind a gate that can refuse, be silent, or be gone."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from smt_ray.data.storage import Location

KEY, SECRET = "AKIAGATE", "hush+that/is=secret"
SLOW_DOWN = "503 Slow Down"
FORBIDDEN = "403 Forbidden"


class Quiet(WSGIRequestHandler):
    """Says nothing on standard error."""

    def log(self, *arguments: object) -> None:
        pass


class S3:
    """A server, and the rule by which it refuses requests."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.rule: Callable[[str, str, str], str] = lambda method, path, query: ""
        """Given method, path and query of a request, returns the status that refuses it, or ''."""
        self.refused: list[tuple[str, str, str]] = []
        self.server: BaseWSGIServer | None = None
        self.port = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]
        status = self.rule(*asked)
        if not status:
            return self.moto(environ, start)
        self.refused.append(asked)
        code = status.partition(" ")[2].replace(" ", "")
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"].read(length)
        body = b"" if asked[0] == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def start(self) -> None:
        """Serve from now on, on the port it had before."""
        self.server = make_server(
            "127.0.0.1", self.port, self, threaded=True, request_handler=Quiet
        )
        self.port = self.server.port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on; what was stored is kept."""
        assert self.server
        self.server.shutdown()
        self.server.server_close()

    def uri(self, place: str, **options: str) -> str:
        """Return the URI of `BUCKET/PATH`, with keys in it."""
        secret = SECRET.replace("/", "%2F").replace("+", "%2B")
        more = {"endpoint_override": f"127.0.0.1:{self.port}", "scheme": "http"} | options
        query = "&".join(f"{name}={value}" for name, value in (more | {"region": "x"}).items())
        return f"s3://{KEY}:{secret}@{place}?{query}"

    @contextmanager
    def refusing(self, rule: Callable[[str, str, str], str]) -> Iterator[None]:
        """Refuse by a rule for a while."""
        before, self.rule = self.rule, rule
        try:
            yield
        finally:
            self.rule = before


@contextmanager
def served(bucket: str = "bucket") -> Iterator[S3]:
    """Serve S3 with an empty bucket."""
    s3 = S3()
    s3.start()
    try:
        Location.of(s3.uri(bucket, allow_bucket_creation="true")).make_dir()
        yield s3
    finally:
        s3.stop()
