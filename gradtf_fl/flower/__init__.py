"""Secure aggregation for any Flower app: what drives a round at the server, and what each member answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.flower.exchanges import CONNECT, TTL_MARGIN, Answer, exchange, messages_for, patience, wait_for_nodes
    from gradtf_fl.flower.groups import combine_groups, gate, groups_needed
    from gradtf_fl.flower.member import Member
    from gradtf_fl.flower.member_store import MemberStore, OpenRound, RoundKey
    from gradtf_fl.flower.records import EventKind, NodeOutcome, OnEvent, RoundEvent, RoundRecord
    from gradtf_fl.flower.refusals import MOST_TYPE, Refused, Vanished, answered, keep_cause, reply_to
    from gradtf_fl.flower.sampling import beacon_of, draw, rest_reasons
    from gradtf_fl.flower.secure_round import RoundLog, SecureRound
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CONNECT",
    "MOST_TYPE",
    "TTL_MARGIN",
    "Answer",
    "EventKind",
    "Member",
    "MemberStore",
    "NodeOutcome",
    "OnEvent",
    "OpenRound",
    "Refused",
    "RoundEvent",
    "RoundKey",
    "RoundLog",
    "RoundRecord",
    "SecureRound",
    "Vanished",
    "answered",
    "beacon_of",
    "combine_groups",
    "draw",
    "exchange",
    "gate",
    "groups_needed",
    "keep_cause",
    "messages_for",
    "patience",
    "reply_to",
    "rest_reasons",
    "wait_for_nodes",
]
