"""A server on loopback that speaks as much of the W&B protocol as the real client needs, and keeps what it is sent.

And the reader of what the client writes where there is no server.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

KEY = "canary" + "0" * 40


def wandb_records(folder: Path) -> list[dict[str, Any]]:
    """Read an offline run back with the reader of the client itself."""
    reader = Path(sys.executable).with_name("wandb")
    command = [str(reader), "leet", "inspect", "--json", str(folder)]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@dataclass
class Kept:
    """One run on the server: its history, a line for each record, its summary, config and files."""

    about: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    alerts: list[tuple[str, str, str]] = field(default_factory=list)
    """(severity, title, text)"""
    made: list[str] = field(default_factory=list)
    """Names of artifacts that the run made."""
    used: list[str] = field(default_factory=list)
    """Names of artifacts that it was made from."""


@dataclass
class KeptArtifact:
    """One artifact on the server: what it was created with, its files, whether it is whole."""

    about: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class _Quiet(ThreadingHTTPServer):
    """A client that goes without a word is nothing to tell of."""

    def handle_error(self, *_: object) -> None:
        """Say nothing."""


class Server:
    """Answers until it is closed; after `breaks_after` lines of history it keeps no more and answers nobody.

    `hangs`: then it takes requests and never answers, as a server does that is too busy.
    """

    def __init__(self, breaks_after: int | None = None, hangs: bool = False) -> None:
        self.runs: dict[str, Kept] = {}
        self.artifacts: dict[str, KeptArtifact] = {}
        self.sweeps: list[dict[str, Any]] = []
        self.saved: dict[str, dict[str, Any]] = {}
        """Saved workspaces by id."""
        self.projects: set[str] = {"bloodcell"}
        """Those that workspaces can be saved in."""
        self.hangs, self._closed = hangs, threading.Event()
        self.breaks_after = breaks_after
        self.asked: list[str] = []
        """Names of queries that it could not answer."""
        self._http = _Quiet(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads a client here."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    @property
    def broken(self) -> bool:
        """Whether it answers nobody any more."""
        lines = sum(len(kept.history) for kept in self.runs.values())
        return self.breaks_after is not None and lines >= self.breaks_after

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        """Take lines of history, a summary, or the end of a run."""
        kept = self.runs[run]
        for name, part in sent.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"] if name.endswith((".json", ".jsonl"))]
            if name == "wandb-history.jsonl":
                kept.history[part["offset"] :] = lines
            elif name == "wandb-summary.json":
                kept.summary = lines[-1]
        if self.broken:  # what came last is lost, the summary of it too
            del kept.history[self.breaks_after :]
            kept.summary = dict(kept.history[-1])
            return
        if sent.get("complete"):
            kept.ends.append(sent["exitcode"])

    def answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL answer."""
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "OrganizationCoreWeaveOrganizationID":
            return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}
        if name == "RunResumeStatus":
            return {"model": self._resume(given["name"])}
        if name == "UpsertBucket":
            kept = self.runs.setdefault(given["name"], Kept())
            kept.about |= {key: value for key, value in given.items() if value is not None}
            project = {"id": "p", "name": given.get("project"), "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": given["name"], "displayName": given["name"], "description": "", "config": "{}"}
            bucket |= {"sweepName": None, "project": project, "historyLineCount": len(kept.history)}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/{given['run']}/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if name == "NotifyScriptableRunAlert":
            self.runs[given["runName"]].alerts.append((given["severity"], given["title"], given["text"]))
            return {"notifyScriptableRunAlert": {"success": True}}
        if name == "UpsertSweep":
            self.sweeps.append(given)
            project = {"id": "p", "name": given["projectName"], "entity": {"id": "e", "name": "me"}}
            return {"upsertSweep": {"sweep": {"name": "s1", "project": project}, "configValidationWarnings": []}}
        found = self._workspace(name, given) or self._artifact(name, given)
        if found is None:
            self.asked.append(name)
        return found or {}

    def _workspace(self, name: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """Return the data of an answer about saved workspaces, None for another query."""
        if name == "GetDefaultEntity":
            return {"viewer": {"id": "u", "entity": "me"}}
        if name == "View":
            if given["projectName"] not in self.projects:
                return {"project": None}
            found = [kept for kept in self.saved.values() if kept["name"] == given["viewName"]]
            return {"project": {"allViews": {"edges": [{"node": node} for node in found]}}}
        if name == "UpsertView2":
            number = given.get("id") or f"v{len(self.saved)}"
            new = number not in self.saved
            fields = ("name", "displayName", "spec", "projectName", "entityName")
            self.saved[number] = {"id": number} | {field: given[field] for field in fields}
            return {"upsertView": {"view": {"id": number, "name": given["name"]}, "inserted": new}}
        return None

    def _artifact(self, name: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """Return the data of an answer about artifacts, None for another query."""
        wanted = given.get("input") or {}
        if name in ("ArtifactType", "XXHashDigestsEnabled", "FetchArtifactDigestAlgorithm", "ClientIDMapping"):
            return {"entity": {"xxhashDigestsEnabled": False}, "project": None, "clientIDMapping": None}
        if name == "CreateArtifact":
            number = f"a{len(self.artifacts)}"
            self.artifacts[number] = KeptArtifact(wanted)
            self.runs[wanted["runName"]].made.append(wanted["artifactCollectionName"])
            sequence = {"id": f"s{number}", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": sequence}}}
        if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            number = given.get("artifactID") or given["artifactManifestID"][1:]
            file = {"id": "f", "uploadUrl": f"{self.url}/artifact/{number}/manifest", "uploadHeaders": []}
            verb = name[0].lower() + name[1:]
            return {verb: {"artifactManifest": {"id": f"m{number}", "file": file if given["includeUpload"] else None}}}
        if name == "CreateArtifactFiles":
            nodes = [self._place(file) for file in wanted["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if name == "CommitArtifact":
            self.artifacts[given["artifactID"]].committed = True
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        if name == "UseArtifact":
            kept = self.artifacts[wanted["artifactID"]]
            self.runs[wanted["runName"]].made.remove(kept.about["artifactCollectionName"])
            self.runs[wanted["runName"]].used.append(kept.about["artifactCollectionName"])
            return {"useArtifact": {"artifact": {"id": wanted["artifactID"]}}}
        return None

    def _place(self, file: dict[str, Any]) -> dict[str, Any]:
        number, name = file["artifactID"], file["name"]
        return {
            "storagePath": f"{number}/{name}",
            "uploadUrl": f"{self.url}/artifact/{number}/{name}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": number},
        }

    def artifact(self, name: str) -> KeptArtifact:
        """Return the newest whole artifact of a name."""
        return [
            kept for kept in self.artifacts.values() if kept.about["artifactCollectionName"] == name and kept.committed
        ][-1]

    def _resume(self, run: str) -> dict[str, Any] | None:
        if run not in self.runs:
            return None
        kept = self.runs[run]
        tail = json.dumps([json.dumps(line) for line in kept.history[-1:]])
        bucket = {
            "id": "b",
            "name": run,
            "displayName": run,
            "summaryMetrics": json.dumps(kept.summary),
            "historyLineCount": len(kept.history),
            "historyTail": tail,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "config": "{}",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler below has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def body(self) -> bytes:
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

            def send(self, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.send({})

            def do_PUT(self) -> None:
                _, run, file = self.path.split("/", 2)
                if run == "artifact":
                    number, name = file.split("/", 1)
                    server.artifacts[number].files[unquote(name)] = self.body()
                else:
                    server.runs[run].files[file] = self.body()
                self.send({})

            def do_POST(self) -> None:
                data = self.body()
                if not server.broken and self.path.endswith("/file_stream"):
                    server.stream(self.path.split("/")[-2], json.loads(data))
                if server.broken:
                    if server.hangs:
                        server._closed.wait()
                    self.close_connection = True
                elif self.path.endswith("/file_stream"):
                    self.send({"exitcode": None, "limits": {}})
                elif self.path == "/graphql":
                    query = json.loads(data)
                    found = query.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", query["query"])[0]
                    self.send({"data": server.answer(found, query.get("variables") or {})})
                else:
                    self.send({})

        return Handler
