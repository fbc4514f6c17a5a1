"""A stand-in for the API of the Hugging Face hub, on loopback: those requests that the package huggingface_hub makes.

A repository is a list of commits, each a dict of its files. Large files are stored by LFS, as the hub stores those of
which .gitattributes has the suffix. The transfer by Xet is left out: set HF_HUB_DISABLE_XET.
"""

import base64
import contextlib
import hashlib
from http import server
import json
import re
from urllib import parse

import yaml

from tests import loopback

LFS = ".safetensors"
LICENCES = ("mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "unknown", "other")
PIPELINES = ("audio-to-audio", "text-to-audio", "feature-extraction")  # of the hub's list, those of audio without text
TOKEN = "hf_WriteTokenOfTheTests"
READ_ONLY = "hf_ReadTokenOfTheTests"


class Hub:
    """The content of the hub.

    Attributes:
      url: for HF_ENDPOINT.
      repositories: by name, `{"private": bool, "commits": [{path: content}]}`.
      requests: method and path of each request.
    """

    def __init__(self):
        self.url, self.repositories, self.objects, self.requests = "", {}, {}, []

    def put(self, name, files, private=False):
        """Adds a commit with these files, and returns its hash."""
        repository = self.repositories.setdefault(name, {"private": private, "commits": []})
        old = repository["commits"][-1] if repository["commits"] else {}
        repository["commits"].append({**old, **files})
        return self.commit(name)

    def commit(self, name, number=-1):
        """Returns the hash of a commit."""
        commits = self.repositories[name]["commits"]
        number %= len(commits)
        digests = [(path, _sha1(content)) for path, content in sorted(commits[number].items())]
        return _sha1(json.dumps([name, number, digests]).encode())

    def find(self, name, revision):
        """Returns hash and files of a revision, or None."""
        for number, files in enumerate(self.repositories[name]["commits"]):
            if revision == self.commit(name, number):
                return revision, files
        if revision == "main":
            return self.commit(name), self.repositories[name]["commits"][-1]
        return None


@contextlib.contextmanager
def serve():
    """Runs a hub for as long as the context lasts."""
    hub = Hub()
    http = server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{http.server_port}"
    with loopback.serving(http):
        yield hub


class _Handler(server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self._start()
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            name, kind, revision = match[1], match[2], parse.unquote(match[3] or "main")
            if version := self._find(name, revision):
                commit, files = version
                if kind == "tree":
                    return self._json([_entry(path, content) for path, content in files.items()])
                siblings = [{"rfilename": path} for path in files]
                private = self.hub.repositories[name]["private"]
                return self._json({"id": name, "sha": commit, "private": private, "siblings": siblings, "tags": []})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if version := self._find(match[1], parse.unquote(match[2])):
                return self._file(*version, match[3])
        elif path.startswith("/storage/"):
            return self._bytes(self.hub.objects[path.removeprefix("/storage/")])
        else:
            self._error(404, "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        path = self._start()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            errors = [{"message": error} for error in _faults(json.loads(body)["content"])]
            return self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if self._token() not in (TOKEN, READ_ONLY):
            return self._error(401, "", "Invalid credentials in Authorization header")
        if self._token() == READ_ONLY:
            return self._error(403, "", "You don't have the rights to create a model under the namespace")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": self._blob(match[1], file["path"]),
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self._json({"transfer": "basic", "objects": list(map(self._upload, json.loads(body)["objects"]))})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            commit = self.hub.put(match[1], dict(self._changed(map(json.loads, body.splitlines()))))
            url = f"{self.hub.url}/{match[1]}/commit/{commit}"
            return self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        self._error(404, "EntryNotFound")

    def do_PUT(self):
        path = self._start()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(data).hexdigest() == path.removeprefix("/storage/")
        self.hub.objects[path.removeprefix("/storage/")] = data
        self._bytes(b"")

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _start(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        return parse.urlsplit(self.path).path

    def _token(self):
        return (self.headers["Authorization"] or "").removeprefix("Bearer ")

    def _find(self, name, revision):
        """Returns commit and files of a revision, or answers with the error of the hub."""
        repository = self.hub.repositories.get(name)
        if not repository or repository["private"] and self._token() not in (TOKEN, READ_ONLY):
            return self._error(401, "RepoNotFound", "Repository not found")
        return self.hub.find(name, revision) or self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _create(self, request):
        name = f"{request['organization']}/{request['name']}"
        if name in self.hub.repositories:
            return self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        is_private = request.get("private") or request.get("visibility") == "private"
        self.hub.put(name, {".gitattributes": b"*.safetensors filter=lfs"}, is_private)
        self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _blob(self, name, path):
        content = self.hub.repositories[name]["commits"][-1].get(path)
        return None if content is None else _entry(path, content).get("lfs", _entry(path, content))["oid"]

    def _upload(self, entry):
        if entry["oid"] in self.hub.objects:
            return entry
        return {**entry, "actions": {"upload": {"href": f"{self.hub.url}/storage/{entry['oid']}"}}}

    def _changed(self, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                yield value["path"], base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                yield value["path"], self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "header" and value["summary"]

    def _file(self, commit, files, path):
        if path not in files:
            return self._error(404, "EntryNotFound", commit=commit)
        entry = _entry(path, files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["oid"]}"'}
        if "lfs" in entry:
            oid = entry["lfs"]["oid"]
            self.hub.objects[oid] = files[path]
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # the hub stores them on other hosts, too
            return self._bytes(b"", 302, headers | linked | {"Location": f"{elsewhere}/storage/{oid}"})
        self._bytes(files[path], 200, headers)

    def _json(self, content, status=200):
        self._bytes(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _error(self, status, code, message="", commit=""):
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._bytes(b"{}", status, {name: value for name, value in headers.items() if value})

    def _bytes(self, data, status=200, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _sha1(data):
    return hashlib.sha1(data).hexdigest()


def _entry(path, content):
    """Returns the entry of a file in the tree of a commit; its oid is that of git."""
    entry = {"type": "file", "path": path, "size": len(content)}
    if not path.endswith(LFS):
        return {**entry, "oid": _sha1(b"blob %d\0" % len(content) + content)}
    oid = hashlib.sha256(content).hexdigest()
    return {**entry, "oid": _sha1(oid.encode()), "lfs": {"oid": oid, "size": len(content), "pointerSize": 134}}


def _faults(card):
    """Yields the faults in the metadata of a model card, by the rules of the hub that our cards concern."""
    match = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    metadata = yaml.safe_load(match[1]) if match else {}
    if metadata.get("license") not in LICENCES:
        yield f'"license" must be one of {list(LICENCES)}'
    if metadata.get("pipeline_tag", PIPELINES[0]) not in PIPELINES:
        yield '"pipeline_tag" is not valid'
    for name in ("tags", "base_model"):
        if not all(isinstance(value, str) and value for value in metadata.get(name, [])):
            yield f'"{name}" must be a list of strings'
