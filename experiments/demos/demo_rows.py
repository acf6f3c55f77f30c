"""``python -m experiments.demos.demo_rows DIR``: private rows for a deployment's demonstration, a pair of files each.

    DIR/org-1.train.jsonl, DIR/org-1.test.jsonl, ...

Rows are House Rules with one hidden rule for all, or with ``--config`` those of a project's own task: what
`gradtf simulate` would give each organization. Public tasks, nobody's data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from gradtf_fl.config import read_project
from gradtf_fl.tasks import Row, federation_data, write_rows

WINDOWS = 8
"""Windows of text in a document of a file."""


def main() -> None:
    """Write the files and say what they follow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, help="federation.toml; the other options win over it")
    parser.add_argument("--organizations", type=int, default=3)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--test-rows", type=int)
    parser.add_argument("--rules", choices=["same", "mixed", "unseen"])
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    names = {"rows": "rows", "test_rows": "test_rows", "rules": "task.rules", "seed": "seed"}
    options = {names[name]: getattr(given, name) for name in names if getattr(given, name) is not None}
    project = read_project(given.config, options | {"organizations": given.organizations})
    data = federation_data(project.task, project, project.organizations, project.batch, project.seed, project.person)
    given.folder.mkdir(parents=True, exist_ok=True)
    for number, organization in enumerate(data.organizations, start=1):
        for kind, rows in (("train", organization.train), ("test", organization.test)):
            path = given.folder / f"org-{number}.{kind}.jsonl"
            if data.metric == "loss" and project.task.format == "text" and project.person is None:
                write_documents(path, rows)
            else:
                write_rows(path, rows, project.person if kind == "train" else None)
            path.chmod(0o600)
        print(f"{organization.name}: {len(organization.train)} rows in {given.folder}: {organization.rule}")


def write_documents(path: Path, rows: Sequence[Row]) -> None:
    """Windows of text as documents of several each, which the reader cuts again."""
    texts = ["".join(row.answer for row in rows[at : at + WINDOWS]) for at in range(0, len(rows), WINDOWS)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf8")


if __name__ == "__main__":
    main()
