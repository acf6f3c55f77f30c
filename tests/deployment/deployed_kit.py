"""A whole deployment on loopback: authority, server, organizations, with real processes (`tests.deployment.members`).

Models and Grad-Transformer are the small untrained ones of `tests.strategies.federation_kit`. The run has far more
rounds than the tests need: faults are injected into a federation that keeps going.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from clients.node.setup import join_federation, make_organization
from gradtf_fl.config import OrganizationConfig, load_toml, to_toml
from gradtf_fl.deployment.certificates import init_authority, issue_server
from gradtf_fl.deployment.processes import free_port
from gradtf_fl.deployment.run_status import RunStatus
from gradtf_fl.errors import ConfigError
from gradtf_fl.file_names import EVENTS
from gradtf_fl.flower import RoundRecord, read_records
from gradtf_fl.secagg import Identity, smallest_threshold
from gradtf_fl.tasks import write_rows
from strategies.server.setup import make_server
from tests.deployment.members import Member, until
from tests.deployment.proxy import Proxy
from tests.strategies.federation_kit import ROWS, TRANSFORMER, random_rows

DEADLINE_S, JOIN_S, RETRIES = 30.0, 30.0, 20
ROUND_S = 240.0  # a round on a busy machine, with a deadline or two missed
PLAN: dict[str, Any] = {
    "rounds": 400,
    "steps": 4,
    "batch": 16,
    "epsilon": 50.0,
    "deadline_s": DEADLINE_S,
    "join_s": JOIN_S,
}


class Deployment:
    """Folders and processes.

    Attributes:
        server, organizations: by position. proxies: what stands between an organization and the server.
        authority: the folder of the certificate authority.
    """

    def __init__(self, root: Path, pair: tuple[str, str], organizations: int = 6, **plan: Any) -> None:
        self.root, self.pair, self.port = root, pair, free_port()
        self.authority = root / "ca"
        past = datetime.now(UTC) - timedelta(days=60)
        init_authority(self.authority, "test", days=400, now=past)
        issue_server(self.authority, ["127.0.0.1", "localhost"], root / "tls")
        enrolments, self.organizations = [], []
        for number in range(1, organizations + 1):
            rows = root / f"rows-{number}.jsonl", root / f"test-{number}.jsonl"
            write_rows(rows[0], random_rows(number - 1, ROWS))
            write_rows(rows[1], random_rows(99 + number, 8))
            folder = root / f"org-{number}"
            make_organization(folder, folder.name, rows[0], rows[1], 1000.0, 1e-5, *pair)
            enrolments.append(folder / "enrolment.json")
            self.organizations.append(Member(folder.name, folder, ["org", "run", str(folder), "--stage-seconds", "20"]))
        tls = {
            "ca": self.authority / "ca.crt",
            "certificate": root / "tls" / "server.crt",
            "key": root / "tls" / "server.key",
        }
        threshold = smallest_threshold(organizations)  # four of six: two may be lost
        models = {"tiny": pair[0], "llm": pair[1], "transformer": str(Path(pair[0]).parent / TRANSFORMER)}
        values = PLAN | models | {"threshold": threshold} | plan
        address = f"127.0.0.1:{self.port}"
        self.invitation = make_server(root / "server", enrolments, address, f"0.0.0.0:{self.port}", tls, values)
        settings = root / "server" / "server.toml"
        settings.write_text(settings.read_text().replace("retries = 3", f"retries = {RETRIES}"))
        self.server = Member("server", root / "server", ["server", "run", str(root / "server")])
        self.proxies = [Proxy(self.port) for _ in self.organizations]
        for member, proxy in zip(self.organizations, self.proxies, strict=True):
            join_federation(member.folder, self.invitation)
            config = self.config(member)
            server = config.server.model_copy(update={"address": f"127.0.0.1:{proxy.port}"}) if config.server else None
            self.change(member, server=server, secagg=config.secagg.model_copy(update={"t_min": threshold}))

    # configuration ------------------------------------------------------------------------------------------

    def config(self, member: Member) -> OrganizationConfig:
        """An organization's configuration."""
        return load_toml(OrganizationConfig, member.folder / "organization.toml")

    def change(self, member: Member, **sections: object) -> None:
        """Rewrite parts of an organization's configuration, in one step: its worker reads it for every message."""
        draft = member.folder / "organization.toml.draft"
        draft.write_text(to_toml(self.config(member).model_copy(update=sections)))
        draft.chmod(0o600)
        draft.replace(member.folder / "organization.toml")

    def key(self, member: Member) -> str:
        """An organization's identity key, hex."""
        return Identity.load(member.folder / "identity.key").public.hex()

    # processes ----------------------------------------------------------------------------------------------

    @property
    def members(self) -> list[Member]:
        """Everyone."""
        return [*self.organizations, self.server]

    def start(self) -> None:
        """Start whatever does not run."""
        if not self.server.running:
            self.server.start(*(["--resume"] if (self.server.folder / "federation.json").exists() else []))
        for organization in self.organizations:
            if not organization.running:
                organization.start()

    def stop(self) -> None:
        """End everything."""
        for member in self.members:
            if member.running:
                member.send(15, "run")
        for member in self.members:
            member.stop(20.0)
        for proxy in self.proxies:
            proxy.close()

    @contextmanager
    def running(self) -> Iterator[Deployment]:
        """Started on entry, ended on exit."""
        try:
            self.start()
            yield self
        finally:
            self.stop()

    # what the server knows ----------------------------------------------------------------------------------

    def status(self) -> RunStatus:
        """The server's status.json, waited for."""

        def read() -> RunStatus | None:
            try:
                return RunStatus.read(self.server.folder)
            except ConfigError:
                return None

        found = until(read, 300.0, "the server's status")
        assert found is not None
        return found

    def records(self) -> list[RoundRecord]:
        """Records of all attempts."""
        return read_records(self.server.folder)

    def run_state(self) -> dict[str, Any]:
        """federation.json."""
        document: dict[str, Any] = json.loads((self.server.folder / "federation.json").read_text())
        return document

    def completed(self) -> list[RoundRecord]:
        """Records of completed rounds."""
        return [record for record in self.records() if record.state == "completed"]

    def events(self) -> list[dict[str, Any]]:
        """The server's event log."""
        path = self.server.folder / EVENTS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def share(self, record: RoundRecord) -> str:
        """How many of all are in the sum of ``record``, for the table of faults."""
        return f"{record.masked} of {len(self.organizations)}"

    # waiting ------------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """`until`, which also fails at once when the server's process has ended."""

        def check() -> Any:
            assert self.server.ended is None, f"{what}: the server ended with {self.server.ended}: {self.server.said()}"
            return condition()

        return until(check, seconds, what)

    def reach(self, *stages: str, after: int = 0, seconds: float = ROUND_S) -> tuple[int, int]:
        """(round, attempt) as soon as the server is at one of ``stages`` of a round above ``after``."""

        def there() -> tuple[int, int] | None:
            now = self.status()
            return (now.round, now.attempt) if now.stage in stages and now.round > after else None

        found: tuple[int, int] = self.wait(there, seconds, f"stage {stages} after round {after}")
        return found

    def beginning(self) -> int:
        """The number of a round that begins now."""
        return self.reach("advertise", after=self.status().round)[0]

    def finished(self, number: int, seconds: float = ROUND_S) -> RoundRecord:
        """The record of round ``number`` when it is completed."""
        found: RoundRecord = self.wait(
            lambda: next((record for record in self.completed() if record.round == number), None),
            seconds,
            f"round {number} completed",
        )
        return found

    def delivered(self, number: int, seconds: float = ROUND_S) -> None:
        """Until round ``number`` was delivered."""
        self.wait(lambda: self.run_state()["delivered"] >= number, seconds, f"round {number} delivered")

    def included(self, member: Member, after: int, seconds: float = ROUND_S) -> tuple[RoundRecord, float]:
        """The first completed round above ``after`` that has ``member`` in its sum, and the seconds waited."""
        started, key = time.monotonic(), self.key(member)
        found: RoundRecord = self.wait(
            lambda: next((r for r in self.completed() if r.round > after and key in r.included), None),
            seconds,
            f"{member.name} in a round above {after}",
        )
        return found, time.monotonic() - started

    def everyone(self, after: int, seconds: float = 2 * ROUND_S) -> RoundRecord:
        """The first completed round above ``after`` with everyone in its sum."""
        found: RoundRecord = self.wait(
            lambda: next(
                (r for r in self.completed() if r.round > after and len(r.included) == len(self.organizations)), None
            ),
            seconds,
            f"a round above {after} with everyone",
        )
        return found
