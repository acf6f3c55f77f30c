"""Curation: shadow sets from public rows, and the store of update-vector tuples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.curation.rule_curation import CurationConfig
    from gradtf_fl.curation.run import Curation, curate
    from gradtf_fl.curation.shadow import as_token_rows, single_task
    from gradtf_fl.curation.store import Shard, TupleStore, token_rows, token_tensors
    from gradtf_fl.curation.task_curation import TaskCuration
    from gradtf_fl.curation.text_shadow import encode_causal
    from gradtf_fl.curation.workers import worker_pool
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Curation",
    "CurationConfig",
    "Shard",
    "TaskCuration",
    "TupleStore",
    "as_token_rows",
    "curate",
    "encode_causal",
    "single_task",
    "token_rows",
    "token_tensors",
    "worker_pool",
]
