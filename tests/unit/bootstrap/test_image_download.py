"""Downloads against a real HTTP server on loopback that misbehaves as told."""

from __future__ import annotations

import base64
import hashlib
import http.server
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpk import errors
from hpk.bootstrap.image import download

CONTENT = random.Random(1).randbytes(3 << 20)
RIGHT = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` at every path. ``cuts``: bytes after which the next answers break off; ``codes``: answers given instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.ranges = True
        self.cuts: list[int] = []
        self.codes: list[int] = []
        self.seen: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range", "")
        server.seen.append((self.path, asked, self.headers.get("Authorization", "")))
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, folder: Path, checksum: str = RIGHT, path: str = "/file") -> bytes:
    target = folder / "file"
    size = download.fetch(server.url + path, str(target), checksum, name="etcd", report=lambda done, whole: None)
    content = target.read_bytes()
    assert size == len(content)
    return content


def test_whole(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "file"
    download.fetch(server.url, str(target), RIGHT, name="etcd", report=lambda done, whole: told.append((done, whole)))
    assert target.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(told) == told


def test_sha512(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, "sha512:" + hashlib.sha512(CONTENT).hexdigest()) == CONTENT


def test_wrong_checksum_names_file_expected_and_got_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    got = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(errors.HPKError) as raised:
        fetch(server, tmp_path)
    assert raised.value.message == f"etcd: wrong checksum of {server.url}/file: expected {RIGHT}, got sha256:{got}"
    assert list(tmp_path.iterdir()) == []
    assert len(server.seen) == 1


def test_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000, 0]
    assert fetch(server, tmp_path) == CONTENT
    assert [asked for _, asked, _ in server.seen] == ["", "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]


@pytest.mark.parametrize("etag", ["", '"one"'])
def test_server_without_ranges_or_validator_begins_again(server: Server, tmp_path: Path, etag: str) -> None:
    server.ranges, server.etag, server.cuts = False, etag, [1_000_000]
    assert fetch(server, tmp_path) == CONTENT


def test_file_replaced_between_two_tries_is_fetched_whole(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]
    server.content = b"x" * len(CONTENT)
    original = Handler.do_GET

    class Replacing(Handler):
        def do_GET(self) -> None:
            original(self)
            self.server.content, self.server.etag = CONTENT, '"two"'

    server.RequestHandlerClass = Replacing
    assert fetch(server, tmp_path) == CONTENT


def test_file_replaced_without_a_new_etag_is_fetched_once_more(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]
    server.content = b"x" * len(CONTENT)
    original = Handler.do_GET

    class Replacing(Handler):
        def do_GET(self) -> None:
            original(self)
            self.server.content = CONTENT

    server.RequestHandlerClass = Replacing
    assert fetch(server, tmp_path) == CONTENT
    assert [asked for _, asked, _ in server.seen] == ["", "bytes=1000000-", ""]


def test_always_broken_gives_up_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.cuts = [10] * 100
    with pytest.raises(errors.HPKError, match=r"etcd: http://.*/file could not be fetched in 5 tries: the connection ended at 50 of"):
        fetch(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    assert fetch(server, tmp_path) == CONTENT


def test_not_found_is_final(server: Server, tmp_path: Path) -> None:
    server.codes = [404] * 5
    with pytest.raises(errors.HPKError, match=r"/file: answer 404 Not Found"):
        fetch(server, tmp_path)
    assert len(server.seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    with Server() as closed:
        url = closed.url
    with pytest.raises(errors.HPKError, match="Connection refused"):
        download.fetch(url, str(tmp_path / "file"), RIGHT, name="etcd", report=lambda done, whole: None)
    assert list(tmp_path.iterdir()) == []


def test_password_of_a_mirror_is_sent_but_never_told(server: Server, tmp_path: Path) -> None:
    server.codes = [403]
    url = f"http://me:p%40ss@127.0.0.1:{server.server_port}/file"
    with pytest.raises(errors.HPKError) as raised:
        download.fetch(url, str(tmp_path / "file"), RIGHT, name="etcd", report=lambda done, whole: None)
    assert "p%40ss" not in raised.value.message
    assert server.seen[0][2] == "Basic " + base64.b64encode(b"me:p@ss").decode()


def test_proxy_of_the_environment_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    download.fetch("http://dl.example.org/a/b", str(tmp_path / "file"), RIGHT, name="etcd", report=lambda done, whole: None)
    assert server.seen[0][0] == "http://dl.example.org/a/b"


def test_a_folder_is_a_mirror_too(tmp_path: Path) -> None:
    (tmp_path / "dl.example.org" / "v1").mkdir(parents=True)
    (tmp_path / "dl.example.org" / "v1" / "etcd").write_bytes(CONTENT)
    mirror = download.check_url(str(tmp_path) + "/", "--mirror")
    url = download.mirrored("https://dl.example.org/v1/etcd", mirror)
    download.fetch(url, str(tmp_path / "file"), RIGHT, name="etcd", report=lambda done, whole: None)
    assert (tmp_path / "file").read_bytes() == CONTENT
    with pytest.raises(errors.HPKError, match="No such file"):
        download.fetch(url + "x", str(tmp_path / "other"), RIGHT, name="etcd", report=lambda done, whole: None)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("url", ["ftp://x/y", "mirror.example.org", "https://", ""])
def test_bad_mirror(url: str) -> None:
    with pytest.raises(errors.InvalidInput, match="--mirror: "):
        download.check_url(url, "--mirror")
