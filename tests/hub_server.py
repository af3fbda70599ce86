"""
A server that speaks the protocol of the Hugging Face hub, on loopback: branches, commits, file
lists, gates, large files behind a redirect, ranges, new repositories and commits (with Git LFS). It
can damage what it sends.
"""

import base64
import hashlib
import json
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".safetensors", ".bin", ".parquet")  # what the hub stores apart, named by SHA-256
STATUS = {"RepoNotFound": 401, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 401}


@dataclass
class Repo:
    """A model or data set: its commits in order, of which the last is main."""

    kind: str
    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    licence: str | None = None  # of a gated one
    token: str = "hf_granted"  # that opens the gate

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit that holds these files; its name."""
        body = repr(sorted(files.items())) + "".join(self.commits)
        commit = hashlib.sha1(body.encode()).hexdigest()
        self.commits[commit] = dict(files)
        return commit

    @property
    def main(self) -> str:
        """The newest commit."""
        return list(self.commits)[-1]


@dataclass
class Hub:
    """What the server holds, what it was asked, and what it does wrong."""

    address: str
    store: str
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    flipped: set[str] = field(default_factory=set)  # files sent with one bit flipped
    cut: set[str] = field(default_factory=set)  # files of which the second half is lost
    dropped: dict[str, int] = field(default_factory=dict)  # connections that break, by file
    uploaded: dict[str, bytes] = field(default_factory=dict)  # large files, by SHA-256
    messages: list[str] = field(default_factory=list)  # of commits that were uploaded
    writer: str = "hf_writer"  # token that may write
    private: set[str] = field(default_factory=set)

    def repo(self, name: str, kind: str = "model", **options) -> Repo:
        """A new, empty repository."""
        return self.repos.setdefault((kind, name), Repo(kind, name, **options))

    def downloads(self, name: str) -> list[str | None]:
        """Ranges of the requests for the contents of a file, None for all of it."""
        return [
            part for method, path, part in self.asked
            if method == "GET" and path.endswith(f"/{name}") and not path.startswith("/api/")
        ]  # fmt: skip


def blob_id(data: bytes) -> str:
    """Git's name of a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: str, data: bytes) -> dict:
    """One file of a list of files."""
    large = {
        "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    }
    common = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
    return common | large if path.endswith(LARGE) else common


def listing(files: dict[str, bytes], under: str, deep: bool) -> list[dict]:
    """A folder's files and folders, or with `deep` those of all folders below too."""
    start = f"{under}/" if under else ""
    inside = {path: data for path, data in files.items() if path.startswith(start)}
    folders = {
        path[: at + 1] for path in inside for at in range(len(path)) if path[at + 1 :][:1] == "/"
    }
    entries = [entry(path, data) for path, data in inside.items()]
    entries += [
        {"type": "directory", "path": path, "oid": "0" * 40}
        for path in sorted(folders)
        if path.startswith(start)
    ]
    return [e for e in entries if deep or "/" not in e["path"].removeprefix(start)]


class Refused(Exception):
    """An answer of the hub that is an error; its code."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self):
        self.hub.asked.append((self.command, self.path, self.headers.get("Range")))
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if not path.strip("/"):
            return self.answer(200, "the hub")
        try:
            if path.startswith("/api/"):
                return self.api(path.removeprefix("/api/").split("/"))
            if path.startswith("/stored/"):
                kind, owner, name, commit, file = path.removeprefix("/stored/").split("/", 4)
                repo = self.hub.repos[kind, f"{owner}/{name}"]
                return self.contents(file, repo.commits[commit][file], {})
            self.resolve(path.removeprefix("/").split("/"))
        except Refused as refused:
            code = str(refused)
            self.answer(STATUS[code], json.dumps({"error": code}), {"X-Error-Code": code})

    do_HEAD = do_GET

    def do_PUT(self):
        """A large file for the store."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.uploaded[hashlib.sha256(data).hexdigest()] = data
        self.answer(200, "", {"ETag": '"part"'})

    def do_POST(self):
        """A new repository, a commit and what leads to it, or the `paths-info` of some files."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        path = urllib.parse.urlsplit(self.path).path
        if path == "/api/validate-yaml":
            return self.answer(200, json.dumps({"errors": [], "warnings": []}))
        writes = ("/repos/create", "/preupload/main", "/commit/main", "/info/lfs/objects/batch")
        if path.endswith(writes):
            if self.headers.get("Authorization") != f"Bearer {self.hub.writer}":
                return self.answer(403, json.dumps({"error": "no right to write"}))
            return self.write(path, body)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(body)["paths"]
        else:
            wanted = urllib.parse.parse_qs(body)["paths"]
        kind, owner, name, _, revision = self.path.removeprefix("/api/").split("/", 4)
        repo = self.found(kind.removesuffix("s"), f"{owner}/{name}")
        files = repo.commits[self.revision(repo, revision)]
        folders = [
            {"type": "directory", "path": path, "oid": "0" * 40}
            for path in wanted
            if any(file.startswith(f"{path}/") for file in files)
        ]
        entries = [entry(path, files[path]) for path in wanted if path in files]
        self.answer(200, json.dumps(entries + folders))

    def write(self, path, body):
        """What changes a repository."""
        if path.endswith("/commit/main"):
            return self.commit(path, [json.loads(line) for line in body.splitlines()])
        asked = json.loads(body)
        if path.endswith("/repos/create"):
            name = f"{asked['organization']}/{asked['name']}"
            address = f"{self.hub.address}/{name}"
            if ("model", name) in self.hub.repos:
                return self.answer(409, json.dumps({"error": "there already", "url": address}))
            self.hub.repo(name).commit({".gitattributes": b""})
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private.add(name)
            return self.answer(200, json.dumps({"url": address}))
        if path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((*LARGE, ".gguf")) else "regular",
                    "shouldIgnore": False,
                }
                for file in asked["files"]
            ]
            return self.answer(200, json.dumps({"files": files}))
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.store}/store/{o['oid']}"}}}
            for o in asked["objects"]
        ]
        self.answer(200, json.dumps({"transfer": "basic", "objects": objects}))

    def commit(self, path, lines):
        """A commit on main."""
        owner, name = path.removeprefix("/api/models/").split("/")[:2]
        repo = self.found("model", f"{owner}/{name}")
        files = dict(repo.commits[repo.main])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                self.hub.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            else:
                del files[value["path"]]
        oid = repo.commit(files)
        url = f"{self.hub.address}/{repo.name}/commit/{oid}"
        self.answer(200, json.dumps({"success": True, "commitOid": oid, "commitUrl": url}))

    def api(self, parts):
        if len(parts) < 3:  # telemetry and the like
            raise Refused("EntryNotFound")
        kind, owner, name, *rest = parts
        repo = self.found(kind.removesuffix("s"), f"{owner}/{name}")
        if rest == ["auth-check"]:
            self.admit(repo)
            return self.answer(200, "{}")
        commit = self.revision(repo, rest[1] if len(rest) > 1 else "main")
        files = repo.commits[commit]
        if rest[:1] == ["tree"]:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return self.answer(200, json.dumps(listing(files, "/".join(rest[2:]), deep)))
        about = {
            "id": repo.name, "sha": commit, "gated": "manual" if repo.licence else False,
            "siblings": [{"rfilename": path} for path in files],
            "tags": [f"license:{repo.licence}"] if repo.licence else [],
            "cardData": {"license": repo.licence} if repo.licence else {},
        }  # fmt: skip
        self.answer(200, json.dumps(about))

    def resolve(self, parts):
        kind = "dataset" if parts[0] == "datasets" else "model"
        owner, name, _, revision, *file = parts[kind == "dataset" :]
        repo, file = self.found(kind, f"{owner}/{name}"), "/".join(file)
        commit = self.revision(repo, revision)
        self.admit(repo)
        if file not in repo.commits[commit]:
            raise Refused("EntryNotFound")
        data = repo.commits[commit][file]
        about = {"X-Repo-Commit": commit, "ETag": f'"{blob_id(data)}"'}
        if not file.endswith(LARGE):
            return self.contents(file, data, about)
        about |= {
            "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.hub.store}/stored/{kind}/{repo.name}/{commit}/{file}",
        }
        self.answer(302, "", about)

    def admit(self, repo):
        if repo.licence and self.headers.get("Authorization") != f"Bearer {repo.token}":
            raise Refused("GatedRepo")

    def found(self, kind, name) -> Repo:
        if (kind, name) not in self.hub.repos:
            raise Refused("RepoNotFound")
        return self.hub.repos[kind, name]

    def revision(self, repo, revision) -> str:
        commit = repo.main if revision == "main" else revision
        if commit not in repo.commits:
            raise Refused("RevisionNotFound")
        return commit

    def contents(self, file, data, headers):
        """A file's bytes, or the range that was asked for, with the damage that was ordered."""
        if file in self.hub.cut and self.command == "GET":
            data = data[: len(data) // 2]
        if file in self.hub.flipped:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, start = 200, 0
        if wanted := self.headers.get("Range"):
            status, start = 206, int(wanted.removeprefix("bytes=").partition("-")[0])
            headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        if self.command == "GET" and self.hub.dropped.get(file):
            self.hub.dropped[file] -= 1
            self.answer(status, data[start:], headers, broken=True)
        else:
            self.answer(status, data[start:], headers)

    def answer(self, status, body, headers=None, broken=False):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if broken else body)
        if broken:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def hub_server():
    """Start the hub and its store for large files, each on its own loopback host; yield the hub."""
    handler = type("Bound", (Handler,), {})
    servers = [ThreadingHTTPServer((f"127.0.0.{host}", 0), handler) for host in (1, 2)]
    threads = [threading.Thread(target=s.serve_forever, args=[0.05], daemon=True) for s in servers]
    address, store = ("http://{}:{}".format(*server.server_address) for server in servers)
    handler.hub = Hub(address, store)
    for thread in threads:
        thread.start()
    try:
        yield handler.hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
