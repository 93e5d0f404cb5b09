"""A small hub on the loopback address: as much of huggingface.co's API as huggingface_hub asks for in these tests.

Files of at least LFS bytes are in LFS, as the hub has large ones: they are identified by SHA-256, others by git's hash.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS = 20_000


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Repository:
    """Its commits, {path: content} by hash, and its branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        content = json.dumps([sorted((name, sha256(file)) for name, file in files.items()), len(self.commits)])
        name = hashlib.sha1(content.encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """`served` are replacements of contents by path; `dies_after`: the hub is gone after so many bytes of one file."""

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}
        self.served: dict[str, bytes] = {}
        self.dies_after: int | None = None
        self.asked: list[str] = []
        self.connections: list[socket.socket] = []

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def die(self) -> None:
        """Closes the port and all connections."""
        self.socket.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, name: str, folder: Path, branch: str = "main") -> str:
        """A commit with the files of a folder."""
        files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        return self.repositories.setdefault(name, Repository()).commit(files, branch)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.resolve(body=False)

    def do_GET(self):
        url = urlsplit(self.path)
        self.server.asked.append(url.path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", url.path):
            repository = self.server.repositories.get(match[1])
            revision = unquote(match[3] or "main")
            if repository is None:
                return self.fail(404, "RepoNotFound")
            if revision not in repository.branches and revision not in repository.commits:
                return self.fail(404, "RevisionNotFound")
            files = repository.files(revision)
            if match[2] == "tree":
                return self.send([entry(name, file) for name, file in files.items()])
            siblings = [sibling(name, file, "blobs" in parse_qs(url.query)) for name, file in files.items()]
            sha = repository.branches.get(revision, revision)
            return self.send({"id": match[1], "modelId": match[1], "sha": sha, "siblings": siblings, "tags": []})
        self.resolve(body=True)

    def resolve(self, body: bool):
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urlsplit(self.path).path)
        repository = self.server.repositories.get(match[1]) if match else None
        if not match or repository is None:
            return self.fail(404, "RepoNotFound")
        files, name = repository.files(unquote(match[2])), unquote(match[3])
        if name not in files:
            return self.fail(404, "EntryNotFound")
        own, content = files[name], self.server.served.get(name, files[name])
        start = int(re.search(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", repository.branches.get(unquote(match[2]), match[2]))
        self.send_header("ETag", f'"{git_sha1(own)}"')
        if len(own) >= LFS:
            self.send_header("X-Linked-Etag", f'"{sha256(own)}"')
            self.send_header("X-Linked-Size", str(len(own)))
        self.send_header("Content-Length", str(len(content) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body and self.server.dies_after is not None and len(own) >= LFS:
            self.wfile.write(content[start : start + self.server.dies_after])
            self.wfile.flush()
            self.close_connection = True
            self.server.die()
        elif body:
            self.wfile.write(content[start:])

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.uploaded[sha256(content)] = content
        self.send({})

    def do_POST(self):
        path, content = urlsplit(self.path).path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(path)
        if path == "/api/validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                return self.send({"error": "it exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.repositories.setdefault(name, Repository()).commit({".gitattributes": b"*"})
            return self.send({"url": f"{self.server.url}/{name}"})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = json.loads(content)["objects"]
            upload = [{**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}} for o in objects]
            return self.send({"transfer": "basic", "objects": upload})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)", path)
        return getattr(self, match[2])(self.server.repositories[match[1]], unquote(match[3]), content)

    def branch(self, repository: Repository, name: str, content: bytes):
        repository.branches.setdefault(name, repository.branches["main"])
        self.send({})

    def preupload(self, repository: Repository, revision: str, content: bytes):
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(content)["files"]
        ]
        self.send({"files": modes})

    def commit(self, repository: Repository, revision: str, content: bytes):
        files = dict(repository.files(revision))
        for line in map(json.loads, content.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.commit(files, revision)
        name = next(name for name, one in self.server.repositories.items() if one is repository)
        url = f"{self.server.url}/{name}/commit/{made}"
        self.send({"commitUrl": url, "commitOid": made, "success": True})

    def send(self, content, status: int = 200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, code: str):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def sibling(name: str, content: bytes, with_metadata: bool) -> dict:
    if not with_metadata:
        return {"rfilename": name}
    about = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
    lfs = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
    return about | ({"lfs": lfs} if len(content) >= LFS else {})


def entry(name: str, content: bytes) -> dict:
    about = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
    lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return about | ({"lfs": lfs} if len(content) >= LFS else {})


if __name__ == "__main__":  # a process of its own, which is killed in the middle of a file: FOLDER [BYTES]
    Hub.die = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    hub = Hub()
    hub.put("owner/name", Path(sys.argv[1]))
    hub.dies_after = int(sys.argv[2]) if len(sys.argv) > 2 else None
    print(hub.url, flush=True)
    hub.serve_forever()
