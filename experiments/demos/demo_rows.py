"""``python -m experiments.demos.demo_rows DIR``: private rows for a deployment's demonstration, one JSONL pair each.

    DIR/org-1.train.jsonl, DIR/org-1.test.jsonl, ...

Rows are House Rules with one hidden rule for all (`gradtf_fl.tasks.federation`): public tasks, nobody's data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gradtf_fl.tasks import house_rules_federation, write_rows


def main() -> None:
    """Write the files and say what they follow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--organizations", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--test-rows", type=int, default=256)
    parser.add_argument("--rules", choices=["same", "mixed", "unseen"], default="same")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    data = house_rules_federation(given.rules, given.organizations, given.rows, given.test_rows, given.seed)
    for number, organization in enumerate(data, start=1):
        for kind, rows in (("train", organization.train), ("test", organization.test)):
            path = given.folder / f"org-{number}.{kind}.jsonl"
            write_rows(path, rows)
            path.chmod(0o600)
    print(f"{given.organizations} organizations x {given.rows} rows in {given.folder}; hidden rule: {data[0].rule}")


if __name__ == "__main__":
    main()
