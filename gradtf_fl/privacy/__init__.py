"""Accounting and the organization's privacy ledger. Importing this room loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.privacy.accounting.accountants import (
        ACCOUNTANTS,
        ROUNDING,
        Accountant,
        Epsilons,
        SkellamRdp,
        UnsupportedEvent,
        epsilon_pld,
        epsilon_pld_replace_one,
        epsilon_prv,
        epsilon_rdp,
        epsilons,
        fits,
        load_libraries,
    )
    from gradtf_fl.privacy.accounting.calibration import noise_multiplier
    from gradtf_fl.privacy.accounting.events import (
        ACCOUNTANT,
        ADJACENCY,
        NOISE_CSPRNG,
        NOISE_SEEDED,
        NOISE_UNRECORDED,
        ROW_UNIT,
        SAMPLER,
        SAMPLERS,
        UNIT,
        DpEvent,
        Unit,
        merge,
        separate,
    )
    from gradtf_fl.privacy.accounting.skellam import (
        CLIENT_ACCOUNTANT,
        CLIENT_ADJACENCY,
        CLIENT_ASSUMPTIONS,
        CLIENT_NOISE,
        CLIENT_UNIT,
        SkellamEvent,
        epsilon_gaussian,
        epsilon_skellam,
    )
    from gradtf_fl.privacy.empirical import (
        Bools,
        Floats,
        Guesses,
        LowerBound,
        attainable_bound,
        lower_bound,
        score_guesses,
    )
    from gradtf_fl.privacy.ledger.advertised import AdvertisedHeads, Announcement, read_heads
    from gradtf_fl.privacy.ledger.books import DatasetAccount
    from gradtf_fl.privacy.ledger.chain import GENESIS_HASH, Entry, LedgerCheck, seal
    from gradtf_fl.privacy.ledger.dpevent import (
        history_of,
        history_text,
        import_history,
        looks_like_history,
        read_history,
    )
    from gradtf_fl.privacy.ledger.export import export_text, import_ledger
    from gradtf_fl.privacy.ledger.head import head_path
    from gradtf_fl.privacy.ledger.ledger import Ledger
    from gradtf_fl.privacy.ledger.reading import BYTES_CHANGED, LedgerReading, ledger_rows, read_ledger
    from gradtf_fl.privacy.ledger.records import TRAIN, Charge, Genesis, budget_document, canonical, event_document
    from gradtf_fl.privacy.ledger.store import keeps_log
    from gradtf_fl.privacy.planning import (
        EXPECTED_ACCURACY,
        MOST_ROUNDS,
        LedgerOutlook,
        RunPlan,
        WhatIf,
        greatest,
        last_round,
        measurements,
        what_if,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ACCOUNTANT",
    "ACCOUNTANTS",
    "ADJACENCY",
    "BYTES_CHANGED",
    "CLIENT_ACCOUNTANT",
    "CLIENT_ADJACENCY",
    "CLIENT_ASSUMPTIONS",
    "CLIENT_NOISE",
    "CLIENT_UNIT",
    "EXPECTED_ACCURACY",
    "GENESIS_HASH",
    "MOST_ROUNDS",
    "NOISE_CSPRNG",
    "NOISE_SEEDED",
    "NOISE_UNRECORDED",
    "ROUNDING",
    "ROW_UNIT",
    "SAMPLER",
    "SAMPLERS",
    "TRAIN",
    "UNIT",
    "Accountant",
    "AdvertisedHeads",
    "Announcement",
    "Bools",
    "Charge",
    "DatasetAccount",
    "DpEvent",
    "Entry",
    "Epsilons",
    "Floats",
    "Genesis",
    "Guesses",
    "Ledger",
    "LedgerCheck",
    "LedgerOutlook",
    "LedgerReading",
    "LowerBound",
    "RunPlan",
    "SkellamEvent",
    "SkellamRdp",
    "Unit",
    "UnsupportedEvent",
    "WhatIf",
    "attainable_bound",
    "budget_document",
    "canonical",
    "epsilon_gaussian",
    "epsilon_pld",
    "epsilon_pld_replace_one",
    "epsilon_prv",
    "epsilon_rdp",
    "epsilon_skellam",
    "epsilons",
    "event_document",
    "export_text",
    "fits",
    "greatest",
    "head_path",
    "history_of",
    "history_text",
    "import_history",
    "import_ledger",
    "keeps_log",
    "last_round",
    "ledger_rows",
    "load_libraries",
    "looks_like_history",
    "lower_bound",
    "measurements",
    "merge",
    "noise_multiplier",
    "read_heads",
    "read_history",
    "read_ledger",
    "score_guesses",
    "seal",
    "separate",
    "what_if",
]
