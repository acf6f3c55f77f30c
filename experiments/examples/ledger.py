"""A privacy ledger: charge before training, settle after it, refuse what does not fit; an auditor reads the file alone.

Run it (10 seconds, most of them to import the accountants); it prints:

    $ python -m experiments.examples.ledger
    round 1: epsilon 3.302
    round 2: epsilon 4.387
    round 3 refused: clinic: round 3 would take epsilon of dataset 'train' from 4.387 to 5.267, past the budget of 5 ...
    audit: 0 problems, epsilon 4.387 (PRV)
    after an edit: row 3: its content does not match its hash
"""

import tempfile
from pathlib import Path

from gradtf_fl import DpEvent, Identity, Ledger, epsilons
from gradtf_fl.errors import BudgetExhausted
from gradtf_fl.privacy import read_ledger

ROUND = DpEvent(sigma=1.0, q=1 / 16, steps=50)  # noise multiplier, sampling probability, noisy steps


def main(path: Path) -> None:
    """Charge rounds until one is refused, read the ledger as an auditor does, and change a byte of it."""
    key = Identity.generate()
    with Ledger.open(path, identity_key=key.private, organization="clinic", delta=1e-5, budget=5.0) as ledger:
        try:
            for number in range(1, 10):
                ledger.settle(ledger.reserve("run-1", number, 0, ROUND), ROUND)  # in between, it trains
                print(f"round {number}: epsilon {ledger.spent().prv:.3f}")
        except BudgetExhausted as refusal:
            print(f"round {number} refused: {refusal}")
    read = read_ledger(path, public_keys=[key.public])
    print(f"audit: {len(read.problems)} problems, epsilon {epsilons(read.content.events, 1e-5).prv:.3f} (PRV)")
    path.write_bytes(path.read_bytes().replace(b'"steps":50', b'"steps":10'))
    print(f"after an edit: {read_ledger(path).problems[0]}")


if __name__ == "__main__":
    main(Path(tempfile.mkdtemp()) / "ledger.sqlite")
