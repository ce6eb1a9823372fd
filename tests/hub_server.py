"""A hub of models and data sets on loopback that huggingface_hub, timm and transformers take for the Hugging Face hub.

It answers what their downloads and an upload by plain HTTP ask, with the hub's addresses, headers and error codes.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_owner"
"""Who says this may write, and may read what is gated; another token may neither."""
LARGE = (".safetensors", ".bin", ".pth", ".npz", ".onnx", ".parquet", ".tar")
"""What the hub keeps outside git: sent by its digest, and named by it."""


@dataclass(frozen=True)
class Request:
    """What was asked, and the status of the answer."""

    method: str
    path: str
    token: str
    status: int


@dataclass
class Hub:
    """A hub at work. `models` are its repositories as folders, of data sets too, those that were pushed included."""

    url: str
    models: dict[str, Path]
    gated: frozenset[str]
    requests: list[Request] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    """The messages of what was pushed."""
    _objects: dict[str, bytes] = field(default_factory=dict)
    _place: Path = field(default=Path(), repr=False)

    def env(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """The environment of a process that has this hub and a cache of its own; no token with ""."""
        said = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN": token}
        return said | {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def asked(self, pattern: str) -> list[str]:
        """The requests that match, as `GET /path`."""
        return [line for r in self.requests if re.search(pattern, line := f"{r.method} {r.path}")]


@contextlib.contextmanager
def serve(models: Mapping[str, Path], gated: tuple[str, ...] = ()) -> Iterator[Hub]:
    """A hub with these folders under their names, for as long as the context lasts; what is pushed lies in folders that go with it."""
    with tempfile.TemporaryDirectory() as place:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        hub = Hub(f"http://127.0.0.1:{server.server_port}", dict(models), frozenset(gated), _place=Path(place))
        server.hub = hub  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}


def revision(folder: Path) -> str:
    """Follows from the names and the content, as a commit's does."""
    return hashlib.sha1(repr([(n, digest(p)) for n, p in files(folder).items()]).encode()).hexdigest()


def digest(path: Path) -> str:
    """Git's of a small file, the content's of a large one."""
    state = path.stat()
    return _digest(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    content = path.read_bytes()
    if path.name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the dashes at the head of a README.md. Raises ValueError where it is not a table."""
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        tree = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if not isinstance(tree, dict):
        raise ValueError("not a table")
    return tree


def card(folder: Path) -> dict[str, Any]:
    """The front matter of its README.md; empty without one."""
    readme = folder / "README.md"
    return front_matter(readme.read_text(encoding="utf-8")) if readme.exists() else {}


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        self.status, self.code, self.message, self.commit = status, code, message, commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _body(self) -> bytes:
        """Of a stated length, or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _serve(self) -> None:
        body = self._body()
        url = urlsplit(self.path)
        try:
            self._route(unquote(url.path), body, parse_qs(url.query))
        except _Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._answer(
                {"error": error.message},
                error.status,
                headers | ({"X-Repo-Commit": error.commit} if error.commit else {}),
            )

    def _route(self, path: str, body: bytes, query: dict[str, list[str]]) -> None:
        name = r"(?P<name>[\w.-]+/[\w.-]+)"
        path = re.sub(r"^/(api/)?datasets/", lambda found: "/api/models/" if found[1] else "/", path)
        for method, pattern, answer in (
            ("GET", rf"/api/models/{name}", self._model),
            ("GET", rf"/api/models/{name}/revision/(?P<rev>.+)", self._model),
            ("GET", rf"/api/models/{name}/tree/(?P<rev>[^/]+)(/(?P<below>.*))?", self._tree),
            ("POST", rf"/api/models/{name}/paths-info/(?P<rev>[^/]+)", self._paths),
            ("GET", rf"/api/models/{name}/auth-check", self._auth_check),
            ("GET", r"/api/whoami-v2", self._whoami),
            ("HEAD|GET", rf"/{name}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", self._file),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", rf"/api/models/{name}/preupload/(?P<rev>[^/]+)", self._preupload),
            ("POST", rf"/{name}\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/objects/(?P<oid>[0-9a-f]{64})", self._object),
            ("POST", rf"/api/models/{name}/commit/(?P<rev>[^/]+)", self._commit),
        ):
            found = re.fullmatch(pattern, path)
            if found and re.fullmatch(method, self.command):
                said: dict[str, Any] = found.groupdict()
                if method in ("POST", "PUT") and path != "/api/validate-yaml" and "/paths-info/" not in path:
                    self._may_write(upload=method == "PUT")
                if "below" in said:
                    said["deep"] = query.get("recursive", [""])[0].lower() == "true"
                answer(body=body, **said) if method in ("POST", "PUT") else answer(**said)
                return
        raise _Refused(404, "", f"no page {path}")

    # --- reading ---------------------------------------------------------------------------------------------

    def _folder(self, name: str, rev: str = "main") -> tuple[Path, str]:
        """A repository and its revision. Without a token the hub does not tell whether one is missing or private."""
        if name not in self.hub.models:
            if self.token:
                raise _Refused(404, "RepoNotFound", "Repository not found")
            raise _Refused(401, "RepoNotFound", "Invalid username or password.")
        folder = self.hub.models[name]
        sha = revision(folder)
        if rev not in ("main", sha):
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return folder, sha

    def _may_read(self, name: str) -> None:
        if name in self.hub.gated and self.token != TOKEN:
            said = f"Access to model {name} is restricted"
            if self.token:
                raise _Refused(403, "GatedRepo", f"{said} and you are not in the authorized list.")
            raise _Refused(401, "GatedRepo", f"{said}. You must be authenticated to access it.")

    def _model(self, name: str, rev: str = "main") -> None:
        """What is known of a model: of a gated one, too, as on the hub."""
        folder, sha = self._folder(name, rev)
        said = card(folder)
        tree = {
            "_id": sha[:24],
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": sha,
            "private": False,
        }
        tree |= {"gated": "auto" if name in self.hub.gated else False, "disabled": False, "downloads": 0, "likes": 0}
        tree |= {"tags": said.get("tags", []), "cardData": said, "createdAt": "2024-01-01T00:00:00.000Z"}
        tree |= {key: said[key] for key in ("pipeline_tag", "library_name") if key in said}
        tree["siblings"] = [{"rfilename": file, "size": path.stat().st_size} for file, path in files(folder).items()]
        self._answer(tree)

    def _tree(self, name: str, rev: str, below: str | None, deep: bool) -> None:
        """What lies below a folder, or in it alone; unless it is the whole repository, one that is missing is refused."""
        start = f"{below}/" if below else ""
        rows = [row for row in self._rows(name, rev) if row["path"].startswith(start)]
        if below and not rows:
            raise _Refused(404, "EntryNotFound", f"{below} does not exist", self._folder(name, rev)[1])
        if not deep:
            folders = {start + row["path"][len(start) :].partition("/")[0] for row in rows}
            paths = {row["path"] for row in rows}
            rows = [row for row in rows if row["path"] in folders]
            rows += [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(folders - paths)]
        self._answer(rows)

    def _rows(self, name: str, rev: str) -> list[dict[str, Any]]:
        folder, _ = self._folder(name, rev)
        rows = [(file, path, digest(path), path.stat().st_size) for file, path in files(folder).items()]
        return [
            {"type": "file", "path": file, "oid": oid[:40], "size": size}
            | ({"lfs": {"oid": oid, "size": size, "pointerSize": 134}} if file.endswith(LARGE) else {})
            for file, _, oid, size in rows
        ]

    def _paths(self, body: bytes, name: str, rev: str) -> None:
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        rows = self._rows(name, rev)
        folders = [path for path in asked if any(row["path"].startswith(f"{path}/") for row in rows)]
        shown: list[dict[str, Any]] = [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
        self._answer([row for row in rows if row["path"] in asked] + shown)

    def _auth_check(self, name: str) -> None:
        self._folder(name)
        self._may_read(name)
        self._answer({})

    def _file(self, name: str, rev: str, file: str) -> None:
        """A file or, by its Range, the rest of one; HEAD tells what it would be."""
        folder, sha = self._folder(name, rev)
        self._may_read(name)
        path = files(folder).get(file)
        if path is None:
            raise _Refused(404, "EntryNotFound", "Entry not found", sha)
        size, first, etag = path.stat().st_size, 0, digest(path)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if file.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        last = size - 1
        if wanted and self.command == "GET":
            first, last = int(wanted[1]), min(last, int(wanted[2] or last))
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._start(206 if "Content-Range" in headers else 200, last + 1 - first, headers)
        if self.command == "GET":
            with path.open("rb") as source:
                source.seek(first)
                self.wfile.write(source.read(last + 1 - first))

    def _whoami(self) -> None:
        if self.token != TOKEN:
            raise _Refused(401, "", "Invalid username or password.")
        self._answer({"type": "user", "name": "someone", "auth": {"accessToken": {"role": "write"}}, "orgs": []})

    # --- writing ---------------------------------------------------------------------------------------------

    def _may_write(self, upload: bool) -> None:
        """An object's address is its own permission, as in a signed address."""
        if self.token != TOKEN and not upload:
            raise _Refused(403 if self.token else 401, "", "You don't have the rights to write here.")

    def _create(self, body: bytes) -> None:
        tree = json.loads(body)
        name = f"{tree['organization'] or 'someone'}/{tree['name']}"
        said = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.models:
            self._answer(said | {"error": "You already created this model repo"}, 409)
            return
        self.hub.models[name] = self._pushed(name)
        self._answer(said)

    def _pushed(self, name: str) -> Path:
        """The folder of what is pushed to a repository; a folder of the caller's is never written to."""
        place = self.hub._place / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _validate(self, body: bytes) -> None:
        """The hub refuses a card that is no YAML, and warns of one without any."""
        try:
            tree = front_matter(json.loads(body)["content"])
        except ValueError as error:
            self._answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        self._answer(
            {"errors": [], "warnings": [] if tree else [{"message": "empty or missing yaml metadata in repo card"}]}
        )

    def _preupload(self, body: bytes, name: str, rev: str) -> None:
        self._folder(name, rev)
        modes = {f["path"]: "lfs" if f["path"].endswith(LARGE) else "regular" for f in json.loads(body)["files"]}
        self._answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def _batch(self, body: bytes, name: str) -> None:
        self._folder(name)
        rows: list[dict[str, Any]] = json.loads(body)["objects"]
        for row in rows:
            if row["oid"] not in self.hub._objects:
                row["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{row['oid']}"}}
        self._answer({"transfer": "basic", "objects": rows})

    def _object(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "", "other content than its digest says")
        self.hub._objects[oid] = body
        self._answer({})

    def _commit(self, body: bytes, name: str, rev: str) -> None:
        before, _ = self._folder(name, rev)
        place = self._pushed(name)
        if before != place:
            for file, path in files(before).items():
                _write(place, file, path.read_bytes())
            self.hub.models[name] = place
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                self.hub.commits.append(value["summary"])
            elif key == "file":
                _write(place, value["path"], base64.b64decode(value["content"]))
            elif key == "lfsFile":
                _write(place, value["path"], self.hub._objects[value["oid"]])
            elif key == "deletedFile":
                (place / value["path"]).unlink()
            else:
                raise _Refused(400, "", f"unknown operation {key}")
        sha = revision(place)
        self._answer(
            {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "hookOutput": ""}
        )

    # --- answers ---------------------------------------------------------------------------------------------

    def _answer(self, tree: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(tree).encode()
        self._start(status, len(body), {"Content-Type": "application/json; charset=utf-8"} | dict(headers or {}))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.hub.requests.append(Request(self.command, self.path, self.token, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _write(place: Path, file: str, content: bytes) -> None:
    path = place / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
