"""A Hub on loopback, to which huggingface_hub 2.4 speaks: repositories, commits, large files, pull requests; and its troubles.

`with LocalHub() as hub:` serves until the block ends; `hub.environment(home)` is what a process needs to talk to it. A `Fault`
makes the next requests that it fits go wrong. `hub.log` has each request as (method, path, status).
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

WRITE, READ, STRANGER = "hf_mayWriteAsMe0123456789", "hf_mayReadAsMe01234567890", "hf_isAStranger01234567890"
TOKENS = {WRITE: ("me", "write"), READ: ("me", "read"), STRANGER: ("stranger", "write")}
"""Whose a token is, and what it may."""
LARGE = re.compile(r"\.(safetensors|npz|npy|parquet|arrow)$")


@dataclass
class Fault:
    """What goes wrong with requests whose method and path it fits, so many times."""

    method: str
    path: str
    """A pattern, searched for in the path as it comes."""
    status: int | None = None
    """Answered instead; None: nothing is answered, and the connection is cut."""
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    after: int = 0
    """Of a cut connection: so many bytes of the body go through first, of a request's or of an answer's."""
    delay: float = 0.0
    """Seconds before anything is answered; without a status the answer is then the right one."""
    done_first: bool = False
    """The request is done, and only its answer is lost."""
    until: threading.Event | None = None
    """What is waited for before anything is answered, ten minutes at most; `waited` says whether it came."""
    waited: list[bool] = field(default_factory=list)

    @property
    def late(self) -> bool:
        """Whether it is answered, but not at once."""
        return self.delay > 0 or self.until is not None


@dataclass
class Commit:
    files: dict[str, bytes]
    title: str
    parent: str | None = None


@dataclass
class Repo:
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    pulls: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, bytes], title: str, parent: str | None) -> str:
        sha = hashlib.sha1(f"{time.time_ns()} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits[sha] = Commit(files, title, parent)
        self.refs[ref] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", body: dict[str, Any] | None = None):
        self.status, self.body = status, body
        self.headers = {**({"X-Error-Code": code} if code else {}), **({"X-Error-Message": message} if message else {})}


class LocalHub:
    """The server, its repositories by kind and name, and what went wrong on purpose."""

    def __init__(self, page: int = 1000) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.served: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int | None]] = []
        self.page, self.lock = page, threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Gone for good: connections are refused."""
        self.server.shutdown()
        self.server.server_close()

    def put(self, name: str, files: dict[str, bytes] | Path, kind: str = "models", private: bool = False) -> str:
        """A repository with these files, or a folder's, in one more commit on main; its commit."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        repo = self.repos.setdefault((kind, name), Repo(private))
        return repo.commit("main", files, "put", repo.refs.get("main"))

    def serve(self, files: dict[str, bytes]) -> str:
        """Files by their paths, beside the repositories; gives the address before the path."""
        self.served |= files
        return self.url

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        repo = self.repos[kind, name]
        return repo.commits[str(repo.find(revision))].files

    def titles(self, name: str, revision: str = "main") -> list[str]:
        """Of the commits of a branch, newest first, without the empty one that a repository begins with."""
        repo, titles = self.repos["models", name], []
        sha = repo.find(revision)
        while sha is not None:
            titles.append(repo.commits[sha].title)
            sha = repo.commits[sha].parent
        return titles[:-1]

    def environment(self, home: Path, token: str | None = WRITE) -> dict[str, str]:
        """For a process that talks to this Hub and to no other, with a cache of its own."""
        said = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        said |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        said |= {"HF_UPDATE_DOWNLOAD_COUNTS": "0", "NO_PROXY": "127.0.0.1,localhost"}
        return {**said, "HF_TOKEN": token or "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "" if token else "1"}


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else what follows a head waits for its acknowledgement

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do(self) -> None:
        fault = self._fault()
        length = int(self.headers.get("Content-Length", 0))
        if fault and fault.status is None and not fault.done_first and not fault.late and self.command in ("PUT", "POST"):
            self.rfile.read(min(fault.after, length))
            return self._cut()
        body = self._read_body(length)
        if fault and fault.late:
            time.sleep(fault.delay)
            if fault.until is not None:
                fault.waited.append(fault.until.wait(600))
            fault = fault if fault.status is not None else None
        if fault and fault.status is not None:
            return self._answer(fault.status, {"error": "planted"}, fault.headers)
        try:
            with self.hub.lock:
                status, content, headers = self._route(body)
        except Refused as refused:
            said = refused.body or {"error": refused.headers.get("X-Error-Message", "no")}
            status, content, headers = refused.status, said, refused.headers
        if fault and fault.done_first:
            return self._cut()
        self._answer(status, content, headers, fault.after if fault else None)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do

    def _read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _fault(self) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and fault.method == self.command and re.search(fault.path, self.path):
                    fault.times -= 1
                    return fault
        return None

    def _cut(self) -> None:
        self.hub.log.append((self.command, self.path, None))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, content: Any, headers: dict[str, str], only: int | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.hub.log.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw if only is None else raw[:only])
        if only is not None:
            self.wfile.flush()
            self._cut()

    def _route(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        path = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(path.query).items()}
        self.body = body
        if path.path in self.hub.served and self.command in ("GET", "HEAD"):
            return 200, self.hub.served[path.path], {}
        for method, pattern, act in ROUTES:
            if method == ("GET" if self.command == "HEAD" else self.command) and (found := re.fullmatch(pattern, path.path)):
                given = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                answer = act(self, **given)
                return answer if isinstance(answer, tuple) else (200, answer, {})
        raise Refused(404, message=f"no such call: {self.command} {path.path}")

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    def user(self) -> tuple[str, str] | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in TOKENS:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return TOKENS.get(given)

    def repo(self, kind: str, name: str, write: bool = False) -> Repo:
        repo, user = self.hub.repos.get((kind, name)), self.user()
        if repo is None or (repo.private and (user is None or user[0] != name.split("/")[0])):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and (user is None or user != (name.split("/")[0], "write")):
            raise Refused(403 if user else 401, message="You don't have the rights to write to this repository")
        return repo

    def revision(self, repo: Repo, revision: str) -> str:
        if (sha := repo.find(revision)) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def whoami(self) -> Any:
        if (user := self.user()) is None:
            raise Refused(401, message="Invalid username or password.")
        token = {"displayName": "test", "role": user[1]}
        return {"name": user[0], "type": "user", "orgs": [], "auth": {"type": "access_token", "accessToken": token}}

    def create(self) -> Any:
        kind = f"{self.json.get('type') or 'model'}s"
        if (user := self.user()) is None:
            raise Refused(401, message="Invalid username or password.")
        name = f"{self.json.get('organization') or user[0]}/{self.json['name']}"
        url = {"url": f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"}
        if (kind, name) in self.hub.repos:
            raise Refused(409, message="You already created this model repo", body={"error": "exists", **url})
        if user != (name.split("/")[0], "write"):
            raise Refused(403, message=f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
        made = self.hub.repos[kind, name] = Repo(self.json.get("visibility") == "private")
        made.commit("main", {}, "initial commit", None)
        return url

    def may_read(self, kind: str, name: str) -> Any:
        self.repo(kind, name)
        return {}

    def may_write(self, kind: str, name: str) -> Any:
        self.repo(kind, name, write=True)
        return {}

    def info(self, kind: str, name: str, revision: str = "main") -> Any:
        repo = self.repo(kind, name)
        sha = self.revision(repo, revision)
        files = repo.commits[sha].files
        siblings = [{"rfilename": path, **(_sizes(path, raw) if "blobs" in self.query else {})} for path, raw in files.items()]
        when = "2026-11-25T00:00:00.000Z"
        said = {
            "id": name,
            "sha": sha,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "author": name.split("/")[0],
        }
        return {**said, "lastModified": when, "createdAt": when, "tags": [], "siblings": siblings}

    def tree(self, kind: str, name: str, revision: str, path: str = "") -> Any:
        repo = self.repo(kind, name)
        sha = self.revision(repo, revision)
        below = f"{path}/" if path else ""
        inside = {each: raw for each, raw in repo.commits[sha].files.items() if each.startswith(below)}
        if path and not inside:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        listed = [{"type": "file", "path": each, **_sizes(each, raw)} for each, raw in inside.items()]
        folders = {below + each[len(below) :].partition("/")[0] for each in inside if "/" in each[len(below) :]}
        if self.query.get("recursive", "false").lower() != "true":
            listed = [each for each in listed if "/" not in each["path"][len(below) :]]
        listed += [{"type": "directory", "path": each, "oid": "0" * 40} for each in sorted(folders)]
        start = int(self.query.get("cursor", 0))
        end, more = start + self.hub.page, {}
        if end < len(listed):
            rest = "&".join(f"{name}={value}" for name, value in {**self.query, "cursor": str(end)}.items())
            more = {"Link": f'<{self.hub.url}{urlsplit(self.path).path}?{rest}>; rel="next"'}
        return 200, listed[start:end], more

    def paths_info(self, kind: str, name: str, revision: str) -> Any:
        repo = self.repo(kind, name)
        files = repo.commits[self.revision(repo, revision)].files
        asked = parse_qs(self.body.decode()).get("paths", [])
        return [{"type": "file", "path": path, **_sizes(path, files[path])} for path in asked if path in files]

    def list_refs(self, kind: str, name: str) -> Any:
        repo = self.repo(kind, name)
        branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": sha} for r, sha in repo.refs.items() if "/" not in r]
        return {"branches": branches, "tags": [], "converts": []}

    def commits(self, kind: str, name: str, revision: str) -> Any:
        repo, listed = self.repo(kind, name), []
        sha: str | None = self.revision(repo, revision)
        while sha is not None:
            when = "2026-11-25T00:00:00.000Z"
            listed.append({"id": sha, "title": repo.commits[sha].title, "message": "", "date": when, "authors": []})
            sha = repo.commits[sha].parent
        return listed

    def branch(self, kind: str, name: str, revision: str) -> Any:
        repo = self.repo(kind, name, write=True)
        if revision in repo.refs:
            raise Refused(409, message=f"Reference already exists: refs/heads/{revision}")
        asked = json.loads(self.body) if self.body else {}
        repo.refs[revision] = self.revision(repo, asked.get("startingPoint", "main"))
        return {}

    def validate(self) -> Any:
        return {"errors": [], "warnings": []}

    def preupload(self, kind: str, name: str, revision: str) -> Any:
        repo = self.repo(kind, name, write="create_pr" not in self.query)
        there = repo.commits[self.revision(repo, revision)].files
        said = []
        for asked in self.json["files"]:
            path, mode = asked["path"], "lfs" if LARGE.search(asked["path"]) else "regular"
            oid = {"oid": _oid(path, there[path])} if path in there else {}
            said.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"files": said}

    def batch(self, name: str) -> Any:
        self.repo("models", name)
        objects = []
        for asked in self.json["objects"]:
            there = asked["oid"] in self.hub.blobs
            actions = {"actions": {"upload": {"href": f"{self.hub.url}/store/{asked['oid']}"}}}
            objects.append({**asked, **({} if there else actions)})
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str) -> Any:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.blobs[oid] = self.body
        return {}

    def commit(self, kind: str, name: str, revision: str) -> Any:
        request = "create_pr" in self.query
        repo = self.repo(kind, name, write=not request)
        sha = self.revision(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        head = lines[0]["value"]
        if head.get("parentCommit") not in (None, sha):
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[sha].files)
        for line in lines[1:]:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[path] = self.hub.blobs[value["oid"]]
            else:
                files = {p: raw for p, raw in files.items() if p != path and not p.startswith(f"{path}/")}
        more, ref = {}, revision
        if request:
            repo.pulls.append(head)
            ref = f"refs/pr/{len(repo.pulls)}"
            more = {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{len(repo.pulls)}"}
        oid = repo.commit(ref, files, head["summary"], sha)
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, **more}

    def resolve(self, name: str, revision: str, path: str, kind: str = "models") -> Any:
        repo = self.repo(kind.strip("/"), name)
        sha = self.revision(repo, revision)
        raw, found = repo.commits[sha].files.get(path), {"X-Repo-Commit": sha}
        if raw is None:
            refused = Refused(404, "EntryNotFound", "Entry not found")
            refused.headers |= found
            raise refused
        headers = {**found, "ETag": f'"{_oid(path, raw)}"', "Accept-Ranges": "bytes", "Content-Type": "text/plain"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return 200, raw, headers
        start, end = int(asked[1]), int(asked[2] or len(raw) - 1)
        return 206, raw[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(raw)}"}


def _oid(path: str, raw: bytes) -> str:
    """As git names a file, or as LFS names a large one."""
    return hashlib.sha256(raw).hexdigest() if LARGE.search(path) else hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def _sizes(path: str, raw: bytes) -> dict[str, Any]:
    said = {"size": len(raw), "oid": _oid(path, raw), "blobId": _oid(path, raw)}
    large = {"oid": said["oid"], "sha256": said["oid"], "size": len(raw), "pointerSize": 134}
    return {**said, **({"lfs": large} if LARGE.search(path) else {})}


NAME, REV = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{NAME}"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"{API}/auth-check", _Handler.may_read),
    ("GET", f"{API}/auth-check/write", _Handler.may_write),
    ("GET", f"{API}", _Handler.info),
    ("GET", f"{API}/revision/{REV}", _Handler.info),
    ("GET", f"{API}/tree/{REV}(/(?P<path>.+))?", _Handler.tree),
    ("POST", f"{API}/paths-info/{REV}", _Handler.paths_info),
    ("GET", f"{API}/refs", _Handler.list_refs),
    ("GET", f"{API}/commits/{REV}", _Handler.commits),
    ("POST", f"{API}/branch/{REV}", _Handler.branch),
    ("POST", f"{API}/preupload/{REV}", _Handler.preupload),
    ("POST", f"{API}/commit/{REV}", _Handler.commit),
    ("POST", f"/{NAME}\\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/store/(?P<oid>[0-9a-f]{64})", _Handler.store),
    ("GET", rf"/(?P<kind>datasets/)?{NAME}/resolve/{REV}/(?P<path>.+)", _Handler.resolve),
]
"""Method and path of each call. HEAD is asked as GET."""
