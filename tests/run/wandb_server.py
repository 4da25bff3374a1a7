"""A stand-in for W&B's server, which keeps the history of runs like the real one."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"
ARTIFACT = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
ALWAYS = {  # answers that depend on nothing
    "ServerFeaturesQuery": {"serverInfo": {"features": []}},
    "CreateAgent": {"createAgent": {"agent": {"id": "agent"}}},
    "ArtifactType": {"project": {"artifact": None}},
    "CreateArtifact": {
        "createArtifact": {"artifact": ARTIFACT}
    },  # of a table: as if it were there already
}


class Server:
    """``with Server() as server``: a server at ``server.url``, for WANDB_BASE_URL.

    ``server.history(id)``: a run's rows.
    A line of a run's history is kept under its number: sending the number again replaces it.
    ``dead`` hangs up on every caller, as a network that is gone.
    """

    def __init__(self) -> None:
        self.lines: dict[str, dict[int, dict]] = {}
        self.summaries: dict[str, dict] = {}
        self.configs: dict[str, dict] = {}
        self.runs: dict[str, dict] = {}  # what the run was registered with
        self.operations: list[str] = []
        self.sweep = ""  # the configuration of the sweep that was made
        self.commands: list[dict] = []  # for an agent, one a heartbeat
        self.dead = False
        self._server = _Quiet(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def history(self, run: str) -> list[dict]:
        """A run's rows in the order of their lines."""
        return [row for _, row in sorted(self.lines.get(run, {}).items())]

    def answer(self, operation: str, given: dict) -> dict:
        """Answer a GraphQL request."""
        self.operations.append(operation)
        if operation in ("Viewer", "GetDefaultEntity"):
            viewer = {"id": "u", "entity": "us", "username": "us", "email": "", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        if operation == "UpsertBucket":
            name = given.get("name") or given["id"].removeprefix("id-")
            inserted = name not in self.runs
            self.runs.setdefault(name, {}).update({k: v for k, v in given.items() if v is not None})
            self.configs.setdefault(name, {}).update(json.loads(given.get("config") or "{}"))
            project = {"id": "p", "name": "triptych", "entity": {"id": "e", "name": "us"}}
            lines = len(self.lines.get(name, {}))
            bucket = {"id": f"id-{name}", "name": name, "displayName": name, "description": ""}
            bucket |= {
                "config": "{}",
                "sweepName": "",
                "project": project,
                "historyLineCount": lines,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if operation == "RunResumeStatus":
            return {"model": self._resume(given["name"])}
        if operation == "CreateRunFiles":
            files = [{"name": n, "uploadUrl": f"{self.url}/put/{n}"} for n in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "UpsertSweep":
            self.sweep = given["config"]
            project = {"id": "p", "name": given["projectName"], "entity": {"id": "e", "name": "us"}}
            sweep = {"name": "s1", "project": project}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            return {"project": {"sweep": {"id": "s1", "config": self.sweep, "runs": {"edges": []}}}}
        if operation == "Heartbeat":
            commands = [self.commands.pop(0)] if self.commands else []
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return ALWAYS.get(operation, {})

    def _resume(self, name: str) -> dict | None:
        if name not in self.runs:
            return None
        rows = self.history(name)
        tail = json.dumps([json.dumps(row) for row in rows[-1:]])
        bucket = {"id": f"id-{name}", "name": name, "displayName": name, "tags": [], "notes": None}
        bucket |= {"historyLineCount": len(rows), "historyTail": tail, "eventsTail": "[]"}
        bucket |= {"summaryMetrics": json.dumps(self.summaries.get(name, {}))}
        bucket |= {"eventsLineCount": 0, "logLineCount": 0}
        bucket |= {"config": json.dumps(self.configs[name]), "wandbConfig": json.dumps({"t": 1})}
        return {
            "id": "m",
            "name": "triptych",
            "entity": {"id": "e", "name": "us"},
            "bucket": bucket,
        }

    def stream(self, run: str, sent: dict) -> None:
        """Receive a post to a run's file stream."""
        for name, part in (sent.get("files") or {}).items():
            for number, line in enumerate(part["content"], start=part["offset"]):
                if name == "wandb-history.jsonl":
                    self.lines.setdefault(run, {})[number] = json.loads(line)
                if name == "wandb-summary.json":
                    self.summaries[run] = json.loads(line)


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that close the connection."""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if server.dead:
                self.close_connection = True
                return
            if not self._known():
                self._reply(401, {"errors": [{"message": "user is not logged in"}]})
                return
            sent = json.loads(body)
            if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                server.stream(found[1], sent)
                self._reply(200, {})
                return
            operation = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
            data = server.answer(operation[1] if operation else "", sent.get("variables") or {})
            self._reply(200, {"data": data})

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._reply(200, {})

        def do_GET(self) -> None:
            self._reply(404, {})

        def _known(self) -> bool:
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            return base64.b64decode(given).decode().endswith(KEY)

        def _reply(self, status: int, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
