"""The door: keys on every route, names and origins, sizes; the same for a route that somebody adds tomorrow."""

import base64
import http.client
import json
import time
from urllib.parse import urlsplit

import pytest

from qkv.errors import ConfigError
from qkv.serve.answers import public
from qkv.serve.guard import OPEN
from qkv.serve.settings import ServeSettings

KEY = "a-key-of-some-length"


def ask(address: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()


def routes(app) -> list[tuple[str, str]]:
    """Every method and path, with something in the place of parameters."""
    paths = app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def test_every_route_asks_for_a_key(serve) -> None:
    from qkv.serve.app import make_app

    locked = serve(keys=(KEY,)).address
    known = routes(make_app(ServeSettings(keys=(KEY,))).app)
    assert len(known) > 5
    for method, path in known:
        for wrong in (None, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer "):
            shown = {} if wrong is None else {"Authorization": wrong}
            status, said = ask(locked, method, path, b"{}", Content_Type="application/json", **shown)
            assert (status == 401) == (path not in OPEN), (method, path, status, said)
        assert ask(locked, method, f"{path}?key={KEY}")[0] in ((401,) if path not in OPEN else (200, 503))


def test_the_ways_to_show_a_key(serve) -> None:
    locked = serve(keys=(KEY, "another-key")).address
    basic = base64.b64encode(f"anybody:{KEY}".encode()).decode()
    signed = f"AWS4-HMAC-SHA256 Credential={KEY}/20261130/us-east-1/sagemaker/aws4_request, Signature=0"
    for value in (f"Bearer {KEY}", "bearer another-key", f"Basic {basic}", signed):
        assert ask(locked, "GET", "/v1/models", Authorization=value)[0] == 200
    assert ask(locked, "GET", "/v1/models", x_api_key=KEY)[0] == 200
    for value in ("Basic !", "Basic", "Bearer", "Digest x", f"AWS4-HMAC-SHA256 {KEY}"):
        assert ask(locked, "GET", "/v1/models", Authorization=value)[0] == 401


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="fewer than 8 characters"):
        ServeSettings(keys=("short",))


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:99", 200), ("[::1]:8000", 200), ("evil.example", 403), ("", 403), ("a b", 403)],
)
def test_names_of_this_server(live, host: str, status: int) -> None:
    assert ask(live.address, "GET", "/v1/models", Host=host)[0] == status


def test_pages_of_others(live, serve) -> None:
    assert ask(live.address, "GET", "/v1/models", Origin=live.address)[0] == 200
    for origin in ("http://evil.example", "null", "https://localhost.evil.example"):
        assert ask(live.address, "GET", "/v1/models", Origin=origin)[0] == 403
    open_to_one = serve(origins=("https://good.example",)).address
    assert ask(open_to_one, "GET", "/v1/models", Origin="https://good.example")[0] == 200


def test_bodies_that_are_too_large(serve) -> None:
    small = serve(max_body=1 << 20).address
    said = b'{"prompt": "' + b"x" * (2 << 20) + b'"}'
    assert ask(small, "POST", "/v1/completions", said, Content_Type="application/json")[0] == 413
    connection = http.client.HTTPConnection(urlsplit(small).netloc, timeout=20)
    chunks = iter([said[: 64 << 10]] * 17)
    connection.request("POST", "/v1/completions", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    assert ask(small, "POST", "/v1/completions", b"", Content_Length="99999999999999999999")[0] in (400, 413)
    assert ask(small, "POST", "/v1/completions", b"x", Content_Encoding="gzip")[0] == 415


def test_a_body_that_never_comes(serve) -> None:
    impatient = serve(read_seconds=0.3).address
    connection = http.client.HTTPConnection(urlsplit(impatient).netloc, timeout=20)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Length", "1000")
    connection.putheader("Content-Type", "application/json")
    connection.endheaders()
    began = time.monotonic()
    assert connection.getresponse().status == 408
    assert time.monotonic() - began < 10


ODD = {
    "nested": b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nan": b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "cut": b'{"messages":[{"role":"us',
    "no object": b"[1, 2]",
    "half a pair": rb'{"messages":[{"role":"user","content":"\ud800"}]}',
    "half a pair in a name": rb'{"model":"\ud800","messages":[{"role":"user","content":"x"}]}',
    "bytes": b"\xff\xfe\x00",
    "a path": b'{"model":"/etc/passwd","messages":[{"role":"user","content":"x"}]}',
    "a zero": rb'{"model":"a\u0000b","messages":[{"role":"user","content":"x"}]}',
}


@pytest.mark.parametrize("name", ODD)
def test_odd_bodies(live, name: str) -> None:
    status, said = ask(live.address, "POST", "/v1/chat/completions", ODD[name], Content_Type="application/json")
    assert status in (400, 404)
    error = json.loads(said)["error"]
    assert len(error["message"]) < 500
    assert "Traceback" not in error["message"]
    assert ask(live.address, "GET", "/health")[0] == 200


def test_what_lies_where_is_nobodys_business() -> None:
    said = public("cannot read /root/.cache/models/x/config.json at 0x7f00deadbeef: see http://a.example/b/c or a/b")
    assert said == "cannot read config.json at …: see http://a.example/b/c or a/b"
