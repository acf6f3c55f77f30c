"""A round's LLM adapter goes out to every organization, with the next round's begin or in an exchange of its own.

What comes back is only whether it was stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flwr.serverapp import Grid

from gradtf_fl.adapters import UpdateSpace
from gradtf_fl.flower import TTL_MARGIN, Answer, exchange, messages_for, patience
from gradtf_fl.round_messages import DELIVER_TYPE, AdapterDelivery
from strategies.provider import GeneratedAdapter


@dataclass(frozen=True)
class PendingDelivery:
    """An adapter that was not sent out yet: its round, itself, and U that it was generated from (bytes)."""

    round: int
    adapter: GeneratedAdapter
    update: bytes

    def message(self, run_id: str, tiny: UpdateSpace) -> AdapterDelivery:
        """As a message of its own."""
        return AdapterDelivery(
            run_id=run_id,
            round=self.round,
            adapter=self.adapter.packed,
            signature=self.adapter.signature,
            spec=tiny.spec.canonical(),
            initial_hash=tiny.initial_hash,
            update=self.update,
        )


def fill_begin(pending: PendingDelivery | None) -> dict[str, Any]:
    """The fields of `BeginRound` that carry the pending adapter; its run and its U are those of that round."""
    if pending is None:
        return {}
    adapter = pending.adapter
    return {"adapter_round": pending.round, "adapter": adapter.packed, "signature": adapter.signature}


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
