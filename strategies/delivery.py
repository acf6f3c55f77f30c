"""A round's LLM adapter goes out to every organization; what comes back is only whether it was stored."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.serverapp import Grid

from gradtf_fl.round_messages import DELIVER_TYPE, AdapterDelivery
from strategies.exchange import TTL_MARGIN, Answer, exchange, messages_for, patience


@dataclass(frozen=True)
class Delivered:
    """How many organizations verified and stored the adapter, of how many that were asked."""

    stored: int
    asked: int


def deliver(grid: Grid, delivery: AdapterDelivery, deadline_s: float) -> Delivered:
    """Send the adapter to all connected nodes; whoever is away gets the next round's."""
    nodes = sorted(grid.get_node_ids())
    wait = patience(grid, deadline_s, len(nodes))
    outgoing = dict.fromkeys(nodes, delivery.to_fields())
    messages = messages_for(outgoing, DELIVER_TYPE, str(delivery.round), wait + TTL_MARGIN)
    stored = set[int]()

    def on_answer(answer: Answer) -> None:
        if answer.fields is not None and answer.fields.get("status") == "stored":
            stored.add(answer.node)

    exchange(grid, messages, wait, on_answer)
    return Delivered(len(stored), len(nodes))
