"""A privacy ledger from its first row to an auditor's report: reserve, settle, refuse, verify.

A charge is written before training and settled with what was observed. What does not fit the budget is refused before
anything is written. The auditor needs the file alone, and a changed byte shows.

Run it (about 10 seconds, most of them for the accountants' libraries):

    python -m experiments.examples.audit_ledger
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from gradtf_fl import DpEvent, Identity, Ledger, epsilons
from gradtf_fl.errors import BudgetExhausted
from gradtf_fl.privacy import read_ledger

DELTA, BUDGET = 1e-5, 5.0
ROUND = DpEvent(sigma=1.0, q=1 / 16, steps=50)  # noise multiplier, sampling probability, noisy steps


def main(path: Path) -> None:
    """Charge rounds until the budget refuses one, then read the ledger as an auditor does."""
    identity = Identity.generate()
    with Ledger.open(path, identity_key=identity.private, organization="clinic", delta=DELTA, budget=BUDGET) as ledger:
        for number in range(1, 10):
            try:
                reservation = ledger.reserve("run-1", number, 0, ROUND)
            except BudgetExhausted as refusal:
                print(f"round {number} refused: {refusal}")
                break
            # here the organization would train
            ledger.settle(reservation, ROUND)
            print(f"round {number}: epsilon {ledger.spent().prv:.3f} of {BUDGET:g}")

    reading = read_ledger(path, public_keys=[identity.public])
    figures = epsilons(reading.content.events, reading.content.genesis.delta)
    print(f"audit: {reading.rows} rows, {len(reading.problems)} problems, head {reading.head.hex()[:16]}...")
    print(f"audit: epsilon {figures.prv:.3f} (PRV), {figures.pld:.3f} (PLD), {figures.rdp:.3f} (RDP), delta {DELTA:g}")

    changed = path.read_bytes().replace(b'"steps":50', b'"steps":10')
    path.write_bytes(changed)
    print(f"after an edit: {read_ledger(path).problems[0]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder) / "ledger.sqlite")
