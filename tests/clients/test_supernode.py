"""How often our SuperNode looks for messages, and that Flower's main loop is still the one that we lean on."""

from __future__ import annotations

import ast
import inspect

import pytest

from clients.node import supernode
from tests.flower_private import start_client_internal


def test_flowers_main_loop_uses_time_for_these_pauses_only() -> None:
    tree = ast.parse(inspect.getsource(start_client_internal))
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "time"]
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func) == "time.sleep"
    ]
    assert len(calls) == len(uses)
    assert sorted(ast.literal_eval(call.args[0]) for call in calls) == [0.5, 0.5, supernode.IDLE_SECONDS]


def test_it_looks_often_after_a_message_and_seldom_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = [1000.0]
    monkeypatch.setattr(supernode.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(supernode.time, "sleep", slept.append)
    pauses = supernode.Pauses()
    pauses.sleep(3.0)
    pauses.sleep(0.5)  # a message in hand
    pauses.sleep(3.0)
    clock[0] += supernode.LIVELY_SECONDS - 1
    pauses.sleep(3.0)
    clock[0] += 2
    pauses.sleep(3.0)
    lively = supernode.LIVELY_PAUSE
    assert slept == [3.0, supernode.REPLY_PAUSE, lively, lively, 3.0]
