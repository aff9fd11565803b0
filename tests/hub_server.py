"""A stand-in for the hub's API, in memory: repositories of commits, with small files inside and large in LFS.

It speaks as much as ``create_repo``, ``create_branch``, ``create_commit``, ``upload_folder``, ``repo_info``,
``list_repo_files``, ``snapshot_download`` and reading through ``hf://`` use. Not stood in for: xet, the hub's
binary protocol for large files (the tests switch it off, and huggingface_hub falls back to LFS), and
permissions, but for those of ``other/NAME``, which is no one's to make.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tdpo.core import errors


class Hub:
    """What the server holds, for tests to look at."""

    def __init__(self):
        self.repos = {}
        """Name -> {"private": bool, "kind": "model" or "dataset", "branches": {name: commit}, "commits":
        {commit: {path: bytes}}}"""
        self.objects = {}
        """LFS: sha256 -> content"""
        self.broken_downloads = 0
        """How many downloads of large files are to be cut off half-way."""
        self.uploads = []
        """The sha256 of each large file that came."""

    def commit(self, repo, revision, files):
        name = hashlib.sha1(repr((sorted(files), len(repo["commits"]))).encode()).hexdigest()
        repo["commits"][name] = files
        repo["branches"][revision] = name
        return name

    def find(self, repo, revision):
        """The commit that a revision names, None where there is none."""
        name = repo["branches"].get(revision, revision)
        return name if name in repo["commits"] else None

    def files(self, repository, revision="main"):
        """Path -> content."""
        repo = self.repos[repository]
        return repo["commits"][self.find(repo, revision)]


@contextmanager
def hub_server(home):
    """A running stand-in: yields the Hub and the environment that leads to it, with ``home`` for copies."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield (
            hub,
            {
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_TOKEN": "hf_standin",
                "HF_HOME": str(home),
                "HF_HUB_DISABLE_TELEMETRY": "1",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# huggingface_hub reads its environment once, when it is imported: a process of its own talks to the stand-in.
_CLIENT = """
import json, sys
import tdpo
for line in sys.stdin:
    name, arguments, options = json.loads(line)
    try:
        answer = {"done": getattr(tdpo, name)(*arguments, quiet=True, **options).to_dict()}
    except tdpo.TdpoError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)
"""


@contextmanager
def hub_client(variables):
    """Yields a way to call functions of tdpo where the stand-in is the hub; it raises what they raise."""
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )

    def call(name, *arguments, **options):
        print(json.dumps([name, [str(each) for each in arguments], options]), file=client.stdin, flush=True)
        answer = json.loads(client.stdout.readline())
        if "error" in answer:
            assert "\n" not in answer["error"]
            raise getattr(errors, answer["kind"])(answer["error"])
        return answer["done"]

    try:
        yield call
    finally:
        client.stdin.close()
        client.wait(60)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self._parts()
        match parts:
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                asked = json.loads(body)
                _, header, _ = asked["content"].split("---\n", 2)
                base = (yaml.safe_load(header) or {}).get("base_model", "a/b")
                wrong = [] if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else ["base_model is no model's name"]
                self._json({"errors": [{"message": each} for each in wrong], "warnings": []})
            case ["api", "datasets" | "models", user, name, "branch", branch]:
                repo = self.hub.repos[f"{user}/{name}"]
                repo["branches"].setdefault(branch, repo["branches"]["main"])
                self._json({})
            case ["api", "datasets" | "models", user, name, "preupload", _]:
                self._json({"files": [self._mode(file) for file in json.loads(body)["files"]]})
            case ["api", "datasets" | "models", user, name, "commit", revision]:
                self._commit(f"{user}/{name}", revision, body)
            case ["api", "datasets" | "models", user, name, "paths-info", revision]:
                repo = self.hub.repos[f"{user}/{name}"]
                files = repo["commits"][self.hub.find(repo, revision)]
                asked = parse_qs(body.decode())["paths"]
                self._json([_entry(path, files[path]) for path in asked if path in files])
            case ["datasets", _, _, "info", "lfs", "objects", "batch"]:
                self._batch(json.loads(body)["objects"])
            case [_, _, "info", "lfs", "objects", "batch"]:
                self._batch(json.loads(body)["objects"])
            case _:
                self._json({"error": "no such call"}, 404)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self._parts()[-1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.hub.uploads.append(oid)
        self._json({})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self._parts()
        if parts[:2] in (["api", "datasets"], ["api", "models"]):
            repository, rest = "/".join(parts[2:4]), parts[4:]
        elif parts[:1] == ["datasets"]:
            repository, rest = "/".join(parts[1:3]), parts[3:]
        else:
            repository, rest = "/".join(parts[:2]), parts[2:]
        repo = self.hub.repos.get(repository)
        if repo is None:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        commit = self.hub.find(repo, rest[1] if len(rest) > 1 else "main")
        if commit is None:
            self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = repo["commits"][commit]
        if rest[:1] == ["tree"]:
            inside = "/".join(rest[2:])
            found = [path for path in sorted(files) if path.startswith(f"{inside}/" if inside else "")]
            if inside and not found:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                self._json([_entry(path, files[path]) for path in found])
        elif rest[:1] == ["resolve"]:
            self._file(files.get("/".join(rest[2:])), commit)
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._json(
                {
                    "id": repository,
                    "sha": commit,
                    "private": repo["private"],
                    "tags": [],
                    "siblings": siblings,
                }
            )

    def _create(self, asked):
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        # A client leaves out the type of a model's.
        kind = asked.get("type") or "model"
        url = f"{self._here()}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if name.startswith("other/"):
            self._json({"error": "You don't have the rights to create a repository there"}, 403)
        elif name in self.hub.repos:
            self._json({"error": "exists", "url": url}, 409)
        else:
            private = bool(asked.get("private") or asked.get("visibility") == "private")
            repo = self.hub.repos[name] = {"private": private, "kind": kind, "branches": {}, "commits": {}}
            self.hub.commit(repo, "main", {".gitattributes": b"*.parquet filter=lfs\n"})
            self._json({"url": url, "name": name})

    def _mode(self, file):
        large = file["path"].endswith((".parquet", ".safetensors"))
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": None,
        }

    def _batch(self, objects):
        def action(each):
            if each["oid"] in self.hub.objects:
                return each
            return {**each, "actions": {"upload": {"href": f"{self._here()}/lfs/{each['oid']}"}}}

        self._json({"transfer": "basic", "objects": [action(each) for each in objects]})

    def _commit(self, name, revision, body):
        repo = self.hub.repos[name]
        files = dict(repo["commits"][self.hub.find(repo, revision)])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(repo, revision, files)
        self._json(
            {
                "commitUrl": f"{self._here()}/datasets/{name}/commit/{commit}",
                "commitOid": commit,
                "success": True,
            }
        )

    def _file(self, content, commit):
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        cut = self.command == "GET" and len(content) > 4000 and self.hub.broken_downloads > 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            if cut:
                self.hub.broken_downloads -= 1
                self.wfile.write(content[start : start + 100])
                self.close_connection = True
            else:
                self.wfile.write(content[start:])

    def _json(self, value, status=200, headers=None):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _parts(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        return [part.removesuffix(".git") for part in parts]

    def _here(self):
        return f"http://{self.headers['Host']}"


def _entry(path, content):
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith((".parquet", ".safetensors")):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return entry
