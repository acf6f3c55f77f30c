"""The in-process grid, and the private parts of Flower that it leans on."""

from __future__ import annotations

import time

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from gradtf_fl.errors import RoundAborted
from gradtf_fl.flower import Answer, exchange, messages_for, wait_for_nodes
from gradtf_fl.round_messages import REFUSAL, SECTION, Fields, Refusal
from strategies.engines.in_process import InProcessGrid


def _echo_app() -> ClientApp:
    app = ClientApp()

    @app.train("echo")
    def echo(message: Message, context: Context) -> Message:
        fields = dict(message.content[SECTION])
        if fields.get("fail"):
            raise ValueError("private text")
        fields["node"] = int(context.node_config["number"])
        return Message(RecordDict({SECTION: ConfigRecord(fields)}), reply_to=message)

    return app


def _grid(nodes: int = 3) -> InProcessGrid:
    return InProcessGrid(_echo_app(), [{"number": number} for number in range(nodes)])


def _to_all(grid: InProcessGrid, fields: Fields) -> list[Message]:
    return messages_for(dict.fromkeys(grid.get_node_ids(), fields), "train.echo", "1", 60.0)


def test_answers_belong_to_the_node_that_was_asked() -> None:
    grid = _grid()
    nodes = list(grid.get_node_ids())
    outgoing = {node: {"value": node, "blob": b"\x00\xff" * 9} for node in nodes}
    answers: dict[int, Answer] = {}
    exchange(
        grid,
        messages_for(outgoing, "train.echo", "1", 60.0),
        60.0,
        lambda answer: answers.__setitem__(answer.node, answer),
    )
    assert set(answers) == set(nodes)
    for number, node in enumerate(nodes):
        assert answers[node].fields == {"value": node, "blob": b"\x00\xff" * 9, "node": number}


def test_a_client_runs_only_when_its_answer_is_pulled() -> None:
    grid = _grid(2)
    messages = _to_all(grid, {"value": 1})
    ids = list(grid.push_messages(messages))
    assert len(list(grid.pull_messages(ids))) == 1
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []


def test_a_raising_client_gives_an_error_and_no_fields() -> None:
    """As in deployment, the exception's text is in the error: that is why handlers must never raise."""
    grid = _grid(1)
    messages = _to_all(grid, {"fail": 1})
    (reply,) = grid.send_and_receive(messages, timeout=60.0)
    assert reply.has_error()
    assert "private text" in str(reply.error.reason)
    answers: list[Answer] = []
    messages = _to_all(grid, {"fail": 1})
    exchange(grid, messages, 60.0, answers.append)
    assert answers == [Answer(answers[0].node)]


@pytest.mark.parametrize(("said", "meant"), [("policy", Refusal.POLICY), ("a word of its own", Refusal.INTERNAL)])
def test_refusals_are_codes(said: str, meant: Refusal) -> None:
    grid = _grid(1)
    answers: list[Answer] = []
    messages = _to_all(grid, {REFUSAL: said})
    exchange(grid, messages, 60.0, answers.append)
    assert [answer.refusal for answer in answers] == [meant]
    assert answers[0].fields is None


def test_silence_ends_at_the_deadline() -> None:
    grid = _grid(1)
    messages = _to_all(grid, {"value": 1})
    answers: list[Answer] = []
    exchange(grid, messages, 0.0, answers.append)
    assert answers == []


def test_waiting_for_nodes_is_bounded() -> None:
    grid = _grid(3)
    assert len(wait_for_nodes(grid, 3, 3, 0.0)) == 3
    assert len(wait_for_nodes(grid, 5, 3, 0.01)) == 3
    with pytest.raises(RoundAborted, match="3 organizations are connected"):
        wait_for_nodes(grid, 5, 4, 0.01)
    started = time.monotonic()
    assert len(wait_for_nodes(grid, 5, 3, 600.0, all_s=0.01)) == 3  # enough are there: not the whole time for the rest
    assert time.monotonic() - started < 5.0
    with pytest.raises(RoundAborted, match="3 organizations are connected"):
        wait_for_nodes(grid, 5, 4, 0.6, all_s=0.01)  # too few: the whole time
    assert time.monotonic() - started > 0.6
