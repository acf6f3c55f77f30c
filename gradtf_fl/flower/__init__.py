"""Secure aggregation for any Flower app: what drives a round at the server, and what each member answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.flower.admission import own_config, permitted_client, sum_reasons
    from gradtf_fl.flower.app_member import new_member
    from gradtf_fl.flower.exchanges import CONNECT, TTL_MARGIN, Answer, exchange, messages_for, patience, wait_for_nodes
    from gradtf_fl.flower.groups import combine_groups, gate, groups_needed
    from gradtf_fl.flower.member import Member
    from gradtf_fl.flower.member_store import MemberStore, OpenRound, RoundKey
    from gradtf_fl.flower.mod import secagg_mod
    from gradtf_fl.flower.records import NodeOutcome, OnEvent, RoundEvent, RoundRecord
    from gradtf_fl.flower.refusals import MOST_TYPE, Refused, Vanished, answered, keep_cause, reply_to
    from gradtf_fl.flower.run_state import locked_run, open_run, read_records, read_run, save_run
    from gradtf_fl.flower.sampling import beacon_of, draw, rest_reasons
    from gradtf_fl.flower.secure_average import SecureAverage
    from gradtf_fl.flower.secure_sums import Opened, RoundStart, SecureSums
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CONNECT",
    "MOST_TYPE",
    "TTL_MARGIN",
    "Answer",
    "Member",
    "MemberStore",
    "NodeOutcome",
    "OnEvent",
    "OpenRound",
    "Opened",
    "Refused",
    "RoundEvent",
    "RoundKey",
    "RoundRecord",
    "RoundStart",
    "SecureAverage",
    "SecureSums",
    "Vanished",
    "answered",
    "beacon_of",
    "combine_groups",
    "draw",
    "exchange",
    "gate",
    "groups_needed",
    "keep_cause",
    "locked_run",
    "messages_for",
    "new_member",
    "open_run",
    "own_config",
    "patience",
    "permitted_client",
    "read_records",
    "read_run",
    "reply_to",
    "rest_reasons",
    "save_run",
    "secagg_mod",
    "sum_reasons",
    "wait_for_nodes",
]
