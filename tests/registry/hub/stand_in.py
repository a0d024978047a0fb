"""A stand-in for the Hub on the loopback interface: what its real client needs to push and pull, and faults on demand.

It checks bearer tokens, `parentCommit`, and the SHA-256 of what is uploaded. It proves what our client sends; it cannot
prove the Hub's own rules.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from patience import HANG_S

TOKEN = "hf_stand_in"


@dataclass
class Fault:
    """What happens to requests whose `METHOD path` matches.

    `action` is "status", "cut" (the connection ends in mid-body), "stall" (it stays, and no more comes), "hang" or
    "lose answer" (done, and not said).
    """

    pattern: str
    action: str = "status"
    status: int = 503
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "made for a test"


@dataclass
class Blob:
    """A file of a commit."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_sha1(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass
class Commit:
    """`oid` is derived from content and parent."""

    oid: str
    parent: str | None
    files: dict[str, Blob]
    summary: str


class Repo:
    """Commits, branches, tags and pull requests of one repository."""

    def __init__(self, name: str, *, private: bool) -> None:
        self.name = name
        self.private = private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pulls: list[str] = []
        self.gitignore: set[str] = set()
        self.siblings: list[dict[str, Any]] = []  # listed in addition: what a hostile server would say
        self.swapped: dict[str, bytes] = {}  # served instead of what is listed
        self.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit")

    def commit(self, branch: str | None, files: dict[str, Blob], summary: str, parent: str | None = None) -> str:
        parent = parent or (self.branches.get(branch) if branch else None)
        text = json.dumps([parent, summary, sorted((name, blob.sha256) for name, blob in files.items())])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, files, summary)
        if branch:
            self.branches[branch] = oid
        return oid

    def put(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit by somebody else."""
        before = self.commits[self.branches[branch]].files
        added = {name: Blob(data, name.endswith(".safetensors")) for name, data in files.items()}
        return self.commit(branch, {**before, **added}, "by somebody else")

    def resolve(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def head(self, branch: str = "main") -> Commit:
        return self.commits[self.branches[branch]]


class StandIn:
    """The server and all that it holds."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.before_commit: Callable[[Repo], None] | None = None
        self.card_warnings: list[str] = []
        self.samples: list[tuple[str, str]] = []  # what preupload was shown of a file's beginning, base64
        self.stalled = threading.Event()
        self.knows_ranges = True
        self.answered_commit: str | None = None  # said instead of the commit that was listed
        self.storage: StandIn | None = None  # LFS downloads are redirected there, as the Hub does to its CDN
        self.released = threading.Event()  # ends what is stalled
        self.lock = threading.RLock()
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, name: str, *, private: bool = False) -> Repo:
        return self.repos.setdefault(name, Repo(name, private=private))

    def fault(self, pattern: str, action: str = "status", **how: Any) -> None:
        self.faults.append(Fault(pattern, action, **how))

    def take_fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _ in self.requests)

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that has heard enough closes the connection; tests read what stderr has of ours.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: 40 ms of waiting for an acknowledgement each

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{method} {path}"
        with self.hub.lock:
            self.hub.requests.append((method, self.path, {k.lower(): v for k, v in self.headers.items()}))
            self.fault = self.hub.take_fault(line)
        size = int(self.headers.get("Content-Length", 0))
        if self.fault and self.fault.action == "cut" and method == "PUT":
            self.rfile.read(size // 2)
            return self._hang_up()
        body = self.rfile.read(size)
        if self.fault and self.fault.action == "hang":
            threading.Event().wait(1.0)
            return self._hang_up()
        if self.fault and self.fault.action == "status":
            return self._fail(self.fault.status, self.fault.message, **self.fault.headers)
        with self.hub.lock:
            for route, pattern, name in _ROUTES:
                if route == method and (match := re.fullmatch(pattern, path)):
                    return getattr(self, name)(body, *match.groups())
        return self._fail(404, f"no such endpoint: {line}")

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _answer(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        if self.fault and self.fault.action == "lose answer":
            return self._hang_up()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.fault and self.fault.action == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            return self._hang_up()
        if self.fault and self.fault.action == "stall":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.released.wait(HANG_S)
            return self._hang_up()
        if self.command != "HEAD":
            self.wfile.write(data)
        return None

    def _fail(self, status: int, message: str, **headers: str) -> None:
        self._send(json.dumps({"error": message}).encode(), status, {"Content-Type": "application/json", **headers})

    def _repo(self, name: str) -> Repo | None:
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not authorized):
            # The Hub does not say whether it exists to somebody who may not know.
            self._fail(404 if authorized else 401, "Repository not found", **{"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _writable(self, name: str) -> Repo | None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._fail(401, "Invalid username or password.")
            return None
        return self._repo(name)

    def create_repo(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401, "Invalid username or password.")
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            return self._fail(409, "You already created this model repo")
        self.hub.add(name, private=asked.get("visibility") == "private")
        return self._answer({"url": f"{self.hub.url}/{name}", "id": name, "name": name})

    def validate_yaml(self, _: bytes) -> None:
        self._answer({"errors": [], "warnings": [{"message": text} for text in self.hub.card_warnings]})

    def info(self, _: bytes, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) is None:
            return None
        commit = repo.resolve(revision or "main")
        if commit is None:
            return self._fail(404, f"Invalid rev id: {revision}", **{"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for path, blob in commit.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(blob.data), "blobId": blob.git_sha1}
            if blob.lfs:
                entry["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 130}
            siblings.append(entry)
        return self._answer(
            {
                "id": name,
                "sha": self.hub.answered_commit or commit.oid,
                "private": repo.private,
                "siblings": siblings + repo.siblings,
            }
        )

    def refs(self, _: bytes, name: str) -> None:
        if (repo := self._repo(name)) is not None:
            kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
            self._answer(
                {
                    kind: [{"name": k, "ref": f"refs/{folder}/{k}", "targetCommit": v} for k, v in found.items()]
                    for kind, (folder, found) in kinds.items()
                }
                | {"converts": []}
            )

    def branch(self, body: bytes, name: str, branch: str) -> None:
        if (repo := self._writable(name)) is not None:
            start = repo.resolve(json.loads(body).get("startingPoint", "main"))
            assert start is not None
            repo.branches[branch] = start.oid
            self._answer({})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self._writable(name)) is None:
            return None
        tag, commit = json.loads(body)["tag"], repo.resolve(revision)
        if tag in repo.tags:
            return self._fail(409, "Tag reference exists already")
        assert commit is not None
        repo.tags[tag] = commit.oid
        return self._answer({})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if (repo := self._writable(name)) is None:
            return None
        head = repo.resolve(revision)
        answers = []
        for file in json.loads(body)["files"]:
            self.hub.samples.append((file["path"], file["sample"]))
            lfs = file["path"].endswith(".safetensors")
            old = head.files.get(file["path"]) if head else None
            oid = None if old is None else old.sha256 if old.lfs else old.git_sha1
            mode = "lfs" if lfs else "regular"
            ignore = file["path"] in repo.gitignore
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": ignore, "oid": oid})
        return self._answer({"files": answers})

    def batch(self, body: bytes, name: str) -> None:
        if self._writable(name) is None:
            return None
        objects = []
        for asked in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{asked['oid']}"}}
            objects.append(answer)
        return self._answer({"objects": objects, "transfer": "basic"})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._fail(400, "these are other bytes")
        self.hub.objects[oid] = body
        return self._send(b"", 200, {})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        if (repo := self._writable(name)) is None:
            return None
        if self.hub.before_commit is not None:
            self.hub.before_commit(repo)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        is_pull = "create_pr=1" in self.path
        if header["parentCommit"] != repo.branches[branch] and not is_pull:
            return self._fail(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[header["parentCommit"]].files)
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
                case "deletedFile":
                    del files[value["path"]]
        oid = repo.commit(None if is_pull else branch, files, header["summary"], header["parentCommit"])
        answer = {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid}
        if is_pull:
            repo.pulls.append(oid)
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{len(repo.pulls)}"
        return self._answer(answer)

    def download(self, _: bytes, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None:
            return None
        commit = repo.resolve(revision)
        blob = commit.files.get(path) if commit else None
        if commit is None or blob is None:
            return self._fail(404, "Entry not found", **{"X-Error-Code": "EntryNotFound"})
        data = repo.swapped.get(path, blob.data)
        if blob.lfs and self.hub.storage is not None:
            self.hub.storage.objects[blob.sha256] = data
            return self._send(b"", 302, {"Location": f"{self.hub.storage.url}/storage/{blob.sha256}"})
        return self._bytes(data, {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.git_sha1}"'})

    def stored(self, _: bytes, oid: str) -> None:
        self._bytes(self.hub.objects[oid], {})

    def _bytes(self, data: bytes, headers: dict[str, str]) -> None:
        if self.hub.knows_ranges and (found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(found[1])
            where = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(data[start:], 206, {**headers, "Content-Range": where})
        return self._send(data, 200, {**headers, "Accept-Ranges": "bytes"})


_NAME = r"([^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", "create_repo"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("GET", f"/api/models/{_NAME}", "info"),
    ("GET", f"/api/models/{_NAME}/revision/(.+)", "info"),
    ("GET", f"/api/models/{_NAME}/refs", "refs"),
    ("POST", f"/api/models/{_NAME}/branch/(.+)", "branch"),
    ("POST", f"/api/models/{_NAME}/tag/(.+)", "tag"),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", "preupload"),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", "commit"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", "/storage/([0-9a-f]{64})", "store"),
    ("GET", "/storage/([0-9a-f]{64})", "stored"),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", "download"),
)
