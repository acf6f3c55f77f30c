"""Curation: shadow sets from public rows, and the store of update-vector tuples."""

from gradtf_fl.curation.curate import CurationConfig, curate
from gradtf_fl.curation.store import Shard, TupleStore

__all__ = ["CurationConfig", "Shard", "TupleStore", "curate"]
