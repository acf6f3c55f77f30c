"""Accounting and the organization's privacy ledger. Importing this room loads no torch."""

from gradtf_fl.privacy.accountants import (
    ACCOUNTANTS,
    Accountant,
    Epsilons,
    UnsupportedEvent,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    epsilons,
)
from gradtf_fl.privacy.books import DatasetAccount
from gradtf_fl.privacy.calibration import noise_multiplier
from gradtf_fl.privacy.events import NOISE_CSPRNG, NOISE_SEEDED, DpEvent, separate
from gradtf_fl.privacy.ledger import Ledger
from gradtf_fl.privacy.reading import LedgerReading, read_ledger
from gradtf_fl.privacy.skellam import SkellamEvent, epsilon_skellam

__all__ = [
    "ACCOUNTANTS",
    "NOISE_CSPRNG",
    "NOISE_SEEDED",
    "Accountant",
    "DatasetAccount",
    "DpEvent",
    "Epsilons",
    "Ledger",
    "LedgerReading",
    "SkellamEvent",
    "UnsupportedEvent",
    "epsilon_pld",
    "epsilon_prv",
    "epsilon_rdp",
    "epsilon_skellam",
    "epsilons",
    "noise_multiplier",
    "read_ledger",
    "separate",
]
