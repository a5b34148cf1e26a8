"""A stand-in for Google Cloud Storage: as much of its JSON API as TensorStore and gcsfs speak, and objects in a dict.

`served` starts it for processes that have gcsfs; with `in_process` the tests of this process need none.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from internvlu_jax.utils import buckets


class Service:
    """The objects of one bucket, by name, with their generations.

    history: what was done to them, in order: (name, what was written, or None where it was removed).
    refuses: from (method, name) of a request to the status that it fails with, 0 if its connection is cut, or None.
    """

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.history: list[tuple[str, bytes | None]] = []
        self.refuses: Callable[[str, str], int | None] = lambda method, name: None
        self._lock = threading.Lock()
        self._count = 0

    def put(self, name: str, data: bytes, generation: str | None = None) -> tuple[bytes, int] | None:
        """The object and its generation; None where the one that is there is not of the generation that is expected."""
        with self._lock:
            if generation is not None and int(generation) != self.objects.get(name, (b"", 0))[1]:
                return None
            self._count += 1
            self.objects[name] = (bytes(data), self._count)
            self.history.append((name, bytes(data)))
            return self.objects[name]

    def remove(self, name: str) -> bool:
        """Whether it was there."""
        with self._lock:
            if self.objects.pop(name, None) is None:
                return False
            self.history.append((name, None))
            return True

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in list(self.objects) if name.startswith(prefix))


def _resource(bucket: str, name: str, data: bytes, generation: int) -> dict:
    digest = base64.b64encode(md5(data).digest()).decode()
    return {
        "kind": "storage#object", "name": name, "bucket": bucket, "size": str(len(data)), "md5Hash": digest,
        "generation": str(generation), "metageneration": "1", "updated": "2026-01-01T00:00:00.000Z",
        "timeCreated": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients go when they have what they asked another connection for, and when they are killed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: Service

    def log_message(self, *_: object) -> None: ...

    def _answer(self, status: int, body: bytes | dict = b"", **headers: str) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _fail(self, status: int) -> None:
        self._answer(status, {"error": {"code": status, "message": f"status {status}"}})

    def _request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        found = re.fullmatch(r"(?:/download|/upload)?(?:/storage/v1)?/b/([^/]+)(?:/o(?:/(.*))?)?", url.path)
        assert found, self.path
        name = unquote(found[2] or "") or query.get("name", "")
        if self.command == "POST" and query["uploadType"] == "multipart":
            head, _, body = body.split(b"\n\n", 1)[1].partition(b"\n--==0==")
            name, body = json.loads(head)["name"], body.split(b"\n\n", 1)[1].removesuffix(b"\n--==0==--")
        status = self.service.refuses(self.command, name or query.get("prefix", ""))
        if status == 0:
            self.close_connection = True
        elif status is not None or unquote(found[1]) != self.service.bucket:
            self._fail(status or 404)
        elif self.command == "POST" and query["uploadType"] == "resumable" and "upload_id" not in query:
            # The address that the data go to, in one piece.
            self._answer(200, {}, Location=f"http://{self.headers['Host']}{self.path}&upload_id=1")
        elif self.command == "POST":
            self._put(name, body, query)
        elif name:
            self._one(name, query)
        elif "/o" in url.path:
            self._list(query)
        else:
            self._answer(200, {"kind": "storage#bucket", "name": self.service.bucket})

    do_GET = do_POST = do_DELETE = _request

    def _put(self, name: str, data: bytes, query: dict[str, str]) -> None:
        made = self.service.put(name, data, query.get("ifGenerationMatch"))
        self._fail(412) if made is None else self._answer(200, _resource(self.service.bucket, name, *made))

    def _one(self, name: str, query: dict[str, str]) -> None:
        held = self.service.objects.get(name)
        if held is None:
            return self._fail(404)
        data, generation = held
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._fail(412)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        if self.command == "DELETE":
            return self._answer(204) if self.service.remove(name) else self._fail(404)
        if query.get("alt") != "media":
            return self._answer(200, _resource(self.service.bucket, name, *held))
        headers = {"x_goog_generation": str(generation), "ETag": str(generation)}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._answer(200, data, **headers)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first > last:
            return self._fail(416)
        where = f"bytes {first}-{last}/{len(data)}"
        return self._answer(206, data[first : last + 1], Content_Range=where, **headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names = [name for name in self.service.names(prefix) if name >= query.get("startOffset", "")]
        names = [name for name in names if not query.get("endOffset") or name < query["endOffset"]]
        folders = {
            prefix + name[len(prefix) :].split(delimiter)[0] + delimiter
            for name in names
            if delimiter and delimiter in name[len(prefix) :]
        }
        whole = {name: held for name in names if (held := self.service.objects.get(name)) is not None}
        items = [
            _resource(self.service.bucket, name, *held)
            for name, held in whole.items()
            if not (delimiter and delimiter in name[len(prefix) :])
        ]
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})


class Client(AbstractFileSystem):
    """What gcsfs is to fsspec, for the service that was begun last in this process."""

    protocol = ("gcs", "gs")
    cachable = False
    service: Service

    def _key(self, path: str, method: str = "GET") -> str:
        bucket, _, key = self._strip_protocol(path).partition("/")
        status = self.service.refuses(method, key)
        if status is not None:
            raise OSError(f"Forbidden: {path}" if status else "Connection reset by peer")
        if bucket != self.service.bucket:
            raise FileNotFoundError(path)
        return key

    def _entry(self, key: str, kind: str = "file") -> dict:
        size = len(self.service.objects[key][0]) if kind == "file" else 0
        return {"name": f"{self.service.bucket}/{key}", "size": size, "type": kind}

    def info(self, path: str, **_: object) -> dict:
        key = self._key(path)
        if key in self.service.objects:
            return self._entry(key)
        if self.service.names(f"{key}/"):
            return self._entry(key, "directory")
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: object) -> list:
        key = self._key(path)
        above = f"{key}/" if key else ""
        below = {name: name[len(above) :].split("/") for name in self.service.names(above)}
        folders = sorted({above + parts[0] for parts in below.values() if len(parts) > 1})
        files = [name for name, parts in below.items() if len(parts) == 1]
        entries = [self._entry(f, "directory") for f in folders] + [self._entry(f) for f in files]
        return entries if detail else [entry["name"] for entry in entries]

    def find(self, path: str, **options: object) -> list | dict:
        self._key(path)  # for what walks through directories takes one that gives no answer for an empty one
        return super().find(path, **options)

    def cat_file(self, path: str, **_: object) -> bytes:
        key = self._key(path)
        if key not in self.service.objects:
            raise FileNotFoundError(path)
        return self.service.objects[key][0]

    def pipe_file(self, path: str, value: bytes, **_: object) -> None:
        self.service.put(self._key(path, "POST"), value)

    def rm_file(self, path: str) -> None:
        if not self.service.remove(self._key(path, "DELETE")):
            raise FileNotFoundError(path)

    def rm(self, path: str, recursive: bool = False, **_: object) -> None:
        for name in self.find(path) if recursive else [path]:
            self.rm_file(name)

    def mkdir(self, path: str, **_: object) -> None: ...

    makedirs = mkdir

    def _open(self, path: str, mode: str = "rb", **_: object) -> BytesIO:
        if mode == "rb":
            return BytesIO(self.cat_file(path))
        written = BytesIO()
        close = written.close

        def put_and_close() -> None:
            if not written.closed:
                self.pipe_file(path, written.getvalue())
            close()

        written.close = put_and_close
        return written


@contextmanager
def served(bucket: str = "bucket") -> Iterator[tuple[Service, dict[str, str]]]:
    """A service, and the variables by which clients find it; the processes that have them need no credentials."""
    service = Client.service = Service(bucket)
    handler = type("Handler", (_Handler,), {"service": service})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield (
            service,
            {
                "STORAGE_EMULATOR_HOST": url,
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def in_process(monkeypatch: pytest.MonkeyPatch, bucket: str = "bucket") -> Iterator[Service]:
    """A service for this process, reached without gcsfs."""
    fsspec.register_implementation("gcs", Client, clobber=True)
    buckets._service.cache_clear()
    with served(bucket) as (service, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield service
    buckets._service.cache_clear()
