"""A Hugging Face hub in a thread: what creating, listing and committing to a model repo needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_good"
OWNER = "me"


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {"main": {".gitattributes": b""}}
    )
    messages: list[str] = field(default_factory=list)


@dataclass
class StubHub:
    """`objects` are uploaded large files by SHA-256; `refuse` answers a path with a status."""

    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve() -> Iterator[StubHub]:
    """A hub on a free port of this machine, for as long as the block runs."""
    hub = StubHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StubHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, verb: str) -> None:
        self.body = self._read()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{verb} {path}")
        for part, (status, document) in self.hub.refuse.items():
            if part in path:
                return self._send(status, document)
        if verb == "PUT":
            self.hub.objects[path.rpartition("/")[2]] = self.body
            return self._send(200, {})
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            message = "Invalid credentials in Authorization header"
            return self._send(401, {"error": message}, {"X-Error-Message": message})
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        if name not in self.hub.repos:
            return self._send(404, {"error": "gone"}, {"X-Error-Code": "RepoNotFound"})
        if parts[0] != "api":
            return self._file(name, parts)
        return self._repo(name, parts[4:])

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or OWNER
        name = f"{owner}/{asked['name']}"
        document = {"url": f"{self.hub.endpoint}/{name}"}
        if owner != OWNER:
            return self._send(403, {"error": "You don't have the rights to create a model"})
        if name in self.hub.repos:
            return self._send(409, document)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[name] = Repo(private)
        return self._send(200, document)

    def _repo(self, name: str, rest: list[str]) -> None:
        repo = self.hub.repos[name]
        what, branch = (rest[0], rest[1]) if len(rest) > 1 else ("", "main")
        if what == "branch":
            if branch in repo.branches:
                return self._send(409, {"error": "exists"})
            repo.branches[branch] = dict(repo.branches["main"])
            return self._send(200, {})
        files = repo.branches[branch]
        if what == "preupload":
            return self._send(
                200, {"files": [self._mode(f) for f in json.loads(self.body)["files"]]}
            )
        if what == "tree":
            return self._send(200, [{"type": "file", "path": p, "size": len(b), "oid": "0" * 40}
                                    for p, b in files.items()])  # fmt: skip
        if what == "commit":
            return self._commit(name, files)
        siblings = [{"rfilename": path} for path in files]
        info = {"id": name, "private": repo.private, "sha": "1" * 40, "siblings": siblings}
        return self._send(200, info)

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        mode = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, name: str, files: dict[str, bytes]) -> None:
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.repos[name].messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        url = f"{self.hub.endpoint}/{name}/commit/{'2' * 40}"
        self._send(200, {"commitUrl": url, "commitOid": "2" * 40})

    def _file(self, name: str, parts: list[str]) -> None:
        """The endpoints outside /api: large files, and reading a file."""
        if parts[-2:] == ["objects", "batch"]:
            objects = []
            for wanted in json.loads(self.body)["objects"]:
                if wanted["oid"] not in self.hub.objects:
                    href = f"{self.hub.endpoint}/storage/{wanted['oid']}"
                    wanted["actions"] = {"upload": {"href": href}}
                objects.append(wanted)
            return self._send(200, {"transfer": "basic", "objects": objects})
        branch, path = parts[3], "/".join(parts[4:])
        content = self.hub.repos[name].branches[branch].get(path)
        if content is None:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(content).hexdigest()
        return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": "1" * 40})

    def _read(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
