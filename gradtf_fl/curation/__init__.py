"""Curation: shadow sets from public rows, and the store of update-vector tuples."""

from gradtf_fl.curation.curate import Curation, curate
from gradtf_fl.curation.rule_curation import CurationConfig
from gradtf_fl.curation.store import Shard, TupleStore
from gradtf_fl.curation.task_curation import TaskCuration

__all__ = ["Curation", "CurationConfig", "Shard", "TaskCuration", "TupleStore", "curate"]
