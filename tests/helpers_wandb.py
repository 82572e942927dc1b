"""What W&B has on disk of a run, read back; and a server that takes what `wandb sync` sends."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BLOCK, HEADER, WHOLE, LAST = 32768, 7, 1, 4  # LevelDB's log format, in which W&B keeps its records
PATIENCE_S = 30.0
KEY = "0123456789abcdef" * 2 + "01234567"  # of nobody


@dataclass
class Logged:
    """All that one offline run of W&B holds."""

    folder: Path
    id: str = ""
    group: str = ""
    name: str = ""
    kind: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)  # by name the files by their paths in it
    types: dict[str, str] = field(default_factory=dict)  # of artifacts, by name
    exit_code: int | None = None  # None: it was not finished

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric."""
        return [(line["step"], line[name]) for line in self.history if name in line]

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table, images as arrays (H, W, 3)."""
        files = self.artifacts[f"run-{self.id}-{key}"]
        found = json.loads(files[f"{key}.table.json"].read_text(encoding="utf-8"))
        return found["columns"], [[self._cell(value, files) for value in row] for row in found["data"]]

    def _cell(self, value: Any, files: dict[str, Path]) -> Any:
        is_image = isinstance(value, dict) and value.get("_type") == "image-file"
        return pixels(files[value["path"]]) if is_image else value

    def image(self, key: str) -> NDArray[np.uint8]:
        """(H, W, 3) of an image that was logged by itself."""
        path = next(line[f"{key}.path"] for line in self.history if f"{key}.path" in line)
        return pixels(self.folder / "files" / path)


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def offline_runs(runs: Path, at_least: int = 0, again: Callable[[], Any] = lambda: None) -> list[Logged]:
    """Every offline run below ``<runs>/wandb``, in the order in which they were begun.

    W&B's own process writes the end of a run after it has said that it is finished, and only then lets the same run be
    opened again: ``again`` is called until there are ``at_least`` so many.
    """
    end = time.monotonic() + PATIENCE_S
    while True:
        files = sorted(runs.glob("wandb/offline-run-*/run-*.wandb"))
        found = [read_run(path.parent) for path in files]
        ended = all(run.exit_code is not None for run in found)
        if (ended and len(found) >= at_least) or time.monotonic() > end:
            return found
        if ended:
            again()
        time.sleep(0.1)


def read_run(folder: Path) -> Logged:
    found = Logged(folder)
    for record in records(next(folder.glob("run-*.wandb"))):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.group, found.name, found.kind = run.run_id, run.run_group, run.display_name, run.job_type
            found.tags = list(run.tags)
            found.config = values_of(run.config.update)
        elif kind == "history":
            found.history.append(values_of(record.history.item))
        elif kind == "summary":
            found.summary |= values_of(record.summary.update)
        elif kind == "artifact":
            contents = record.artifact.manifest.contents
            found.artifacts[record.artifact.name] = {one.path: Path(one.local_path) for one in contents}
            found.types[record.artifact.name] = record.artifact.type
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def values_of(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file, by W&B's own definition of them."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        if kind == 0 or position + HEADER + length > len(data):
            return  # W&B's process is still writing it
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


# ---- a server


@dataclass
class Server:
    """What W&B's program has sent, where its servers would be."""

    url: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id, as they were announced
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # history by id
    files: set[str] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)
    views: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    resumed: dict[str, Any] | None = None  # what is said of a run that is there already

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Take a request; returns the answer."""
        asked = json.loads(body) if path == "/graphql" else {}
        self.requests.append(asked.get("operationName") or path)
        if path.endswith("/file_stream"):
            for name, one in json.loads(body or b"{}").get("files", {}).items():
                if name == "wandb-history.jsonl":
                    self.lines.setdefault(path.split("/")[-2], []).extend(map(json.loads, one["content"]))
        if path.startswith("/up/"):
            self.files.add(path.removeprefix("/up/"))
        return self._query(asked) if asked else {}

    def _query(self, asked: dict[str, Any]) -> dict[str, Any]:
        values, name = asked.get("variables") or {}, asked.get("operationName") or ""
        if "viewer" in asked["query"]:
            return {"data": {"viewer": {"id": "u", "username": "me", "entity": "me", "admin": False, "flags": "{}"}}}
        if name == "RunResumeStatus" and self.resumed:
            return {"data": {"model": {"id": "p", "name": "nd", "entity": {"id": "e", "name": "me"},
                                       "bucket": {"id": "x", "name": values["name"], **self.resumed}}}}  # fmt: skip
        if name == "UpsertBucket":
            self.runs.setdefault(values["name"], {}).update({k: v for k, v in values.items() if v is not None})
            project = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "x", "name": values["name"], "displayName": values["displayName"], "project": project}
            return {"data": {"upsertBucket": {"inserted": True, "bucket": bucket}}}
        if name == "CreateArtifact":  # as if it were there already: its files need not be sent
            self.artifacts.add(values["input"]["artifactCollectionName"])
            made = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
            return {"data": {"createArtifact": {"artifact": made}}}
        if name == "CreateRunFiles":
            files = [{"name": one, "uploadUrl": f"{self.url}/up/{one}"} for one in values["files"]]
            return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        if "upsertView" in asked["query"]:
            self.views.append(values)
            return {"data": {"upsertView": {"view": {"id": "v", "name": "nw-abc-v"}, "inserted": True}}}
        return {"data": {"project": None}}


@contextmanager
def server() -> Iterator[Server]:
    """A server on this machine in place of W&B's."""
    taken = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = json.dumps(taken.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_GET = do_POST  # noqa: N815

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """Say nothing of connections that are dropped."""

    http = Quiet(("127.0.0.1", 0), Handler)
    taken.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        http.shutdown()
        thread.join()


def wandb_sync(place: Path, taken: Server) -> subprocess.CompletedProcess[str]:
    """Run `wandb sync` on a folder of offline runs, towards a server."""
    surroundings = os.environ | {"WANDB_BASE_URL": taken.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, "-m", "wandb", "sync", str(place)]
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=280)
