"""A server that was taken over: it sends what no organization should fall for, and writes down what they answer."""

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
HUGE = 16_000_000  # bytes
CASES = {
    "no record": ("train.begin", RecordDict({})),
    "other record": ("train.begin", RecordDict({"other": ConfigRecord({"a": 1})})),
    "missing fields": ("train.begin", RecordDict({"gradtf": ConfigRecord({"configs": b""})})),
    "wrong types": ("train.share", RecordDict({"gradtf": ConfigRecord({"round": "1", "attempt": b"", "payload": 3})})),
    "a list": ("train.mask", RecordDict({"gradtf": ConfigRecord({"round": [1], "attempt": [0], "payload": [b""]})})),
    "no such round": (
        "train.unmask",
        RecordDict({"gradtf": ConfigRecord({"round": 10**9, "attempt": 0, "payload": b"x"})}),
    ),
    "negative round": (
        "train.mask",
        RecordDict({"gradtf": ConfigRecord({"round": -1, "attempt": -1, "payload": b"x"})}),
    ),
    "no such message": ("train.evil", RecordDict({"gradtf": ConfigRecord({"round": 1})})),
    "a query": ("query", RecordDict({"gradtf": ConfigRecord({"type": "ping", "path": "/etc/passwd"})})),
    "huge": (
        "train.begin",
        RecordDict({"gradtf": ConfigRecord({"configs": os.urandom(HUGE), "update": b""})}),
    ),
    "forged adapter": (
        "evaluate.adapter",
        RecordDict(
            {
                "gradtf": ConfigRecord(
                    {
                        "run_id": "../../../tmp",
                        "round": 1,
                        "adapter": b"x",
                        "signature": bytes(64),
                        "spec": "{}",
                        "initial_hash": bytes(32),
                        "update": b"",
                    }
                )
            }
        ),
    ),
}


@app.main()
def main(grid: Grid, context: Context) -> None:
    out = Path(str(context.run_config["answers"]))
    answers: dict[str, list[object]] = {}
    for name, (kind, content) in CASES.items():
        nodes = sorted(grid.get_node_ids())
        messages = [Message(content, node, kind, ttl=300.0) for node in nodes]
        try:
            replies = list(grid.send_and_receive(messages, timeout=120.0))
        except Exception as error:
            answers[name] = [f"not sent: {type(error).__name__}"]
            continue
        answers[name] = [
            {"record": {k: dict(v) for k, v in reply.content.items()}}
            if reply.has_content()
            else {"error": [reply.error.code, reply.error.reason]}
            for reply in replies
        ]
        time.sleep(0.1)
    out.write_text(json.dumps(answers, default=repr))
