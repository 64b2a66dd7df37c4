"""What the client of a vLLM server makes of answers, refusals and other servers."""

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from transformer2.errors import ConfigError, UserError
from transformer2.rollout.server import Client, Refused, VLLMOptions


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, body = {"/none": (200, b""), "/html": (200, b"<html>")}.get(self.path, (404, b"no such path"))
        self.answer(status, body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, json.dumps({"asked": asked, "key": self.headers["Authorization"]}).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_answers_are_json_and_no_proxy_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    client = Client(f"{url}/", timeout_minutes=1)
    assert client.request("/v1", {"a": [1]}) == {"asked": {"a": [1]}, "key": "Bearer secret"}
    assert client.request("/none") is None


def test_a_refusal_has_the_servers_words(url: str) -> None:
    with pytest.raises(Refused, match=r"refuses /other \(404\): no such path"):
        Client(url, timeout_minutes=1).request("/other")


def test_what_is_no_vllm_server_is_named(url: str) -> None:
    with pytest.raises(UserError, match="is not a vLLM server: /html gives no JSON"):
        Client(url, timeout_minutes=1).request("/html")
    with pytest.raises(UserError, match="does not answer"):
        Client("http://127.0.0.1:9", timeout_minutes=1).request("/health")


@pytest.mark.parametrize("url", ["nowhere", "ftp://host", "http://host:port", "http://[::1"])
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a URL; write http://HOST:PORT"):
        VLLMOptions(url=url)
