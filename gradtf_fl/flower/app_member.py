"""A member's folder for secure averages of any Flower app: its policy, its key, and what it remembers.

FOLDER/policy.toml     what it accepts (`gradtf_fl.config.MemberPolicy`), 0600
FOLDER/identity.key    its Ed25519 key, 0600
FOLDER/roster.txt      public keys of all members, one hex key a line, unless the policy lists them
FOLDER/state.sqlite    protocol state between two messages, 0600
FOLDER/client.log      refusals and tracebacks, 0600
"""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import dataclass, fields
from pathlib import Path

from gradtf_fl.config import MemberPolicy, load_toml, read_toml, to_toml, validate
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import CLIENT_LOG, POLICY, STATE
from gradtf_fl.files import PRIVATE, exposed, place_new
from gradtf_fl.flower.member import Member
from gradtf_fl.flower.member_store import MemberStore, OpenRound, RoundKey
from gradtf_fl.secagg import ClientPolicy, Identity, Roster

FolderName = str | os.PathLike[str]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS reply (
    one INTEGER PRIMARY KEY CHECK (one = 1), run_id TEXT NOT NULL, round INTEGER NOT NULL,
    weight REAL NOT NULL, metrics TEXT NOT NULL
);
"""


class AppStore(MemberStore):
    """`MemberStore`, and what came with the update that is kept there: its weight and its metrics."""

    schema: str = MemberStore.schema + _SCHEMA

    def open_replied(self, opened: OpenRound, training: bytes, metrics: dict[str, object]) -> None:
        """`open`, and with it what the app replied in this round besides its arrays: the weight, and these metrics."""

        def also(database: sqlite3.Connection) -> None:
            row = opened.key.run_id, opened.key.round, opened.weight, json.dumps(metrics)
            database.execute("INSERT OR REPLACE INTO reply VALUES (1, ?, ?, ?, ?)", row)

        self.open(opened, training, also)

    def reply(self, key: RoundKey) -> tuple[float, dict[str, object]] | None:
        """Weight and metrics of the app's last reply, if that was in this round."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT weight, metrics FROM reply WHERE run_id = ? AND round = ?", (key.run_id, key.round)
            ).fetchone()
        return None if row is None else (float(row[0]), json.loads(row[1]))


@dataclass(frozen=True)
class AppMember:
    """A loaded folder. Everything that decides what may leave comes from here, never from a message."""

    folder: Path
    rules: MemberPolicy
    identity: Identity
    roster: Roster

    @property
    def store(self) -> AppStore:
        """The protocol state."""
        return AppStore(self.folder / STATE)

    def member(self) -> Member:
        """The organization as a member of its rounds."""
        limits = ClientPolicy(**{field.name: getattr(self.rules, field.name) for field in fields(ClientPolicy)})
        rules = self.rules
        return Member(self.identity, self.roster, limits, self.store, rules.min_difference, rules.rest_rounds)


def load_member(policy: Path) -> AppMember:
    """Read and check a member's folder.

    Raises:
        ConfigError: with every problem of ``policy.toml``; somebody else owns or may read what is private; key or
            roster cannot be used.
    """
    folder = policy.parent
    rules = load_toml(MemberPolicy, policy)
    identity = folder / rules.identity
    private = [folder, policy, identity, folder / STATE, folder / CLIENT_LOG, folder / (CLIENT_LOG + ".1")]
    if problems := exposed(private):
        raise ConfigError(problems)
    if isinstance(rules.roster, Path):
        roster = Roster.read(folder / rules.roster)
        listed = read_toml(policy) | {"roster": [key.hex() for key in roster.keys]}
        rules = validate(MemberPolicy, listed, lambda key: f"{policy}: {key}" if key else str(policy))
    else:
        roster = Roster(tuple(bytes.fromhex(key) for key in rules.roster))
    return AppMember(folder, rules, Identity.load(identity), roster)


def new_member(folder: FolderName, policy: MemberPolicy | None = None) -> str:
    """Make a member's folder: a key, and a policy that says what each of its keys is for.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from gradtf_fl.flower import new_member
    >>> key = new_member(Path(mkdtemp()) / "ward")
    >>> len(key)
    64

    Args:
        folder: to be made, 0700; it may exist.
        policy: what to write, in place of the defaults.

    Returns:
        The public key (hex), which belongs into everybody's roster.

    Raises:
        ConfigError: the folder holds a key or a policy, or is open to others.
    """
    place, rules = Path(folder), policy or MemberPolicy()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (place / POLICY).exists():
        raise ConfigError(f"{place / POLICY}: a member already exists there and is never overwritten")
    if problems := exposed([place]):
        raise ConfigError(problems)
    identity = Identity.generate()
    identity.save(place / rules.identity)
    place_new(place / POLICY, to_toml(rules).encode(), PRIVATE)
    return identity.public.hex()
