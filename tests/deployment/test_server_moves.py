"""What a server may try against folders as ``org init`` and ``org join`` make them: refused, or harmless and charged.

Each move is one thing that a server sends to one organization by the very function that its worker answers with. The
code that comes back and the ledger's total charge are compared with what they should be.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients import bounds
from clients.node.worker import answer, resident_mb
from clients.organization import load_organization
from gradtf_fl.config import OrganizationConfig, PolicySection, load_toml, to_toml
from gradtf_fl.deployment.server_config import load_server
from gradtf_fl.privacy import DpEvent, epsilon_prv, noise_multiplier, read_ledger
from gradtf_fl.round_messages import (
    DELIVER_TYPE,
    MESSAGE_TYPES,
    REFUSAL,
    AdapterDelivery,
    BeginRound,
    Fields,
    PieceRequest,
    StagePayload,
    TrainingPlan,
    global_model_hash,
)
from gradtf_fl.secagg import Identity, RoundConfig, SecAggServer, WrongRound, encode_configs
from gradtf_fl.secagg.wire.adverts import Directory
from strategies import Provider, SecureFederation
from strategies.provider import update_bytes
from strategies.server_app import pinned_roster
from tests.deployment.deployed_kit import Deployment
from tests.flower.round_moves import RoundMoves
from tests.strategies.federation_kit import ROWS

ORGANIZATIONS, DELTA, BUDGET = 5, 1e-5, 1000.0
ASKED: dict[str, Any] = {"rounds": 3, "steps": 2, "batch": 16, "epsilon": 8.0, "threshold": 4}
BEGIN = MESSAGE_TYPES["advertise"]
pytestmark = pytest.mark.long  # most moves take .1 s; those that are trained for take longer
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(scope="module")
def deployed(untrained: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Five organizations that joined, and their server; nothing runs."""
    deployment = Deployment(tmp_path_factory.mktemp("moves"), untrained, ORGANIZATIONS, **ASKED)
    yield deployment
    deployment.stop()


@pytest.fixture(scope="module")
def provider(deployed: Deployment) -> Provider:
    return Provider(load_server(deployed.server.folder).plan)


class Hostile:
    """A server, and one organization's folder, fresh for each move."""

    def __init__(self, deployed: Deployment, provider: Provider, root: Path) -> None:
        plan = load_server(deployed.server.folder).plan.model_copy(update={"out": root / "server"})
        shutil.copytree(deployed.server.folder, plan.out)
        self.federation = SecureFederation(plan, provider, pinned_roster(plan))
        self.federation._resume()
        self.folder = root / "organization"
        shutil.copytree(deployed.organizations[0].folder, self.folder)

    # what it sends ------------------------------------------------------------------------------------------

    def config(self, round_number: int = 1, **changes: Any) -> RoundConfig:
        """An honest round's configuration, but for ``changes``."""
        (config,) = self.federation.sums.next_attempt(round_number, self.federation._start())
        return replace(config, **changes)

    def plan(self) -> TrainingPlan:
        """The honest plan."""
        return self.federation._training_plan()

    def begin(self, config: RoundConfig | None = None, **fields: Any) -> Fields:
        """An honest ``train.begin``, but for what is given."""
        config = self.config() if config is None else config
        honest = {"configs": encode_configs([config]), "update": update_bytes(self.federation._update)}
        return BeginRound(**(honest | fields)).to_fields()

    def planned(self, **changes: Any) -> Fields:
        """A begin with another plan."""
        return self.text(replace(self.plan(), **changes).canonical())

    def text(self, dp: str) -> Fields:
        """A begin with any text for a plan."""
        return self.begin(self.config(dp=dp))

    def spec(self, **changes: Any) -> Fields:
        """A begin with another adapter, written as it should be."""
        document = json.loads(self.plan().spec) | changes
        return self.planned(spec=json.dumps(document, sort_keys=True))

    def starting_at(self, update: np.ndarray[Any, Any]) -> Fields:
        """A begin of round 2 at another U that C agrees with; this organization missed round 1."""
        tiny = self.federation.provider.tiny
        start = global_model_hash(tiny.model_sha256, tiny.initial_hash, update.astype("<f4").tobytes())
        return self.begin(self.config(round=2, model_hash=start), update=update.astype("<f4").tobytes())

    def delivery(self, run_id: str = "", **changes: Any) -> AdapterDelivery:
        """The provider's signed adapter of round 1."""
        provider, update = self.federation.provider, self.federation._update
        adapter = provider.generate(run_id or self.federation.sums.state.run_id, 1, update)
        honest = AdapterDelivery(
            run_id or self.federation.sums.state.run_id,
            1,
            adapter.packed,
            adapter.signature,
            provider.tiny.spec.canonical(),
            provider.tiny.initial_hash,
            update_bytes(update),
        )
        return replace(honest, **changes)

    # what comes of it ---------------------------------------------------------------------------------------

    def ask(self, message_type: str, fields: Fields) -> dict[str, Any]:
        """The worker's answer."""
        return dict(answer(self.folder, message_type, fields)["fields"])

    def code(self, message_type: str, fields: Fields) -> str | None:
        """Its refusal code; None for an answer."""
        return self.ask(message_type, fields).get(REFUSAL)

    def spent(self) -> float:
        """Epsilon of everything in the ledger."""
        ledger = self.folder / "ledger.sqlite"
        return epsilon_prv(read_ledger(ledger).content.events, DELTA) if ledger.exists() else 0.0

    def log(self) -> str:
        """What the organization wrote about it."""
        path = self.folder / "client.log"
        return path.read_text() if path.exists() else ""

    def change(self, **policy: Any) -> None:
        """The operator edits ``[policy]`` and ``[secagg]``."""
        path = self.folder / "organization.toml"
        config = load_toml(OrganizationConfig, path)
        sections = {
            name: section.model_copy(update={key: policy[key] for key in policy if key in type(section).model_fields})
            for name, section in (("policy", config.policy), ("secagg", config.secagg))
        }
        path.write_text(to_toml(config.model_copy(update=sections)))


class HostileRounds(Hostile):
    """`Hostile` as the suite for all kinds of member knows it."""

    def config(self, round_number: int = 1, start: int = 0, **changes: Any) -> RoundConfig:
        update = self.start(start)
        tiny = self.federation.provider.tiny
        model_hash = global_model_hash(tiny.model_sha256, tiny.initial_hash, update)
        return super().config(round_number, **{"model_hash": model_hash, **changes})

    def start(self, number: int) -> bytes:
        """The ``number``-th U: zero, or some other."""
        return np.full_like(self.federation._update, number * 1e-3).astype("<f4").tobytes()

    def begin_code(self, configs: object, start: int = 0) -> str | None:
        fields = BeginRound(configs=b"", update=self.start(start)).to_fields()
        return self.code(BEGIN, fields | {"configs": configs})  # type: ignore[dict-item]

    def stage_code(self, stage: str, payload: bytes = b"") -> str | None:
        message_type = dict(MESSAGE_TYPES).get(stage, f"train.{stage}")  # type: ignore[call-overload]
        sent = PieceRequest(1, 0, payload, 0) if stage == "mask" else StagePayload(1, 0, payload)
        return self.code(message_type, sent.to_fields())

    def trained(self) -> int:
        ledger = self.folder / "ledger.sqlite"
        return len(read_ledger(ledger).content.events) if ledger.exists() else 0


def charge_of(rounds: int) -> float:
    """Epsilon of that many honest rounds, from the plan and the rows alone."""
    q, steps = ASKED["batch"] / ROWS, ASKED["steps"]
    event = DpEvent(noise_multiplier(ASKED["epsilon"], DELTA, q, ASKED["rounds"] * steps), q, steps)
    return epsilon_prv([event] * rounds, DELTA) if rounds else 0.0


@pytest.fixture
def hostile(deployed: Deployment, provider: Provider, tmp_path: Path) -> Hostile:
    return Hostile(deployed, provider, tmp_path)


Messages = list[tuple[str, Fields]]


@dataclass(frozen=True)
class Move:
    """What a server sends, the codes that come back, and how many honest rounds the organization has paid for then."""

    messages: Callable[[Hostile], Messages]
    codes: tuple[str | None, ...]
    charged: int = 0
    says: str = ""


def one(make: Callable[[Hostile], Fields], code: str | None, says: str = "", charged: int = 0) -> Move:
    """A move of one begin."""
    return Move(lambda hostile: [(BEGIN, make(hostile))], (code,), charged, says)


def spec(code: str, says: str = "", **changes: Any) -> Move:
    return one(lambda hostile: hostile.spec(**changes), code, says)


def plan(code: str | None, says: str = "", charged: int = 0, **changes: Any) -> Move:
    return one(lambda hostile: hostile.planned(**changes), code, says, charged)


def dp(code: str, change: Callable[[str], str], says: str = "") -> Move:
    return one(lambda hostile: hostile.text(change(hostile.plan().canonical())), code, says)


def config(code: str | None, says: str = "", charged: int = 0, **changes: Any) -> Move:
    return one(lambda hostile: hostile.begin(hostile.config(**changes)), code, says, charged)


def without_checks(text: str, **changes: Any) -> str:
    return json.dumps(json.loads(text) | changes, sort_keys=True, separators=(",", ":"))


def forged(**changes: Any) -> Callable[[str], str]:
    """A plan that no honest program writes, in canonical form."""
    return lambda text: without_checks(text, **changes)


def unread(text: str) -> Callable[[Hostile], Fields]:
    return lambda hostile: hostile.planned(spec=text)


def riding(**changes: Any) -> Callable[[Hostile], Fields]:
    def make(hostile: Hostile) -> Fields:
        good = hostile.delivery(**changes)
        return hostile.begin(adapter_round=1, adapter=good.adapter, signature=good.signature)

    return make


def huge_tiny(signed: bool) -> Callable[[Hostile], Messages]:
    """An adapter whose TinyLM, which it is scored with, has an adapter of rank 4096."""

    def messages(hostile: Hostile) -> Messages:
        document = json.loads(hostile.plan().spec) | {"rank": 4096, "targets": ["embed_tokens"]}
        message = hostile.delivery(spec=json.dumps(document, sort_keys=True))
        if signed:
            message = replace(message, signature=hostile.federation.provider.key.sign(message.signed_bytes))
        return [(DELIVER_TYPE, message.to_fields())]

    return messages


MOVES: dict[str, Move] = {
    "honest": one(lambda hostile: hostile.begin(), None, charged=1),
    # the adapter
    "alpha 1e-12": spec("protocol", "range: alpha", alpha=1e-12),
    "alpha .01": spec("policy", "alpha 0.01 is outside 0.1 to 1024", alpha=0.01),
    "alpha 1e5": spec("policy", "alpha 100000 is outside", alpha=1e5),
    "alpha NaN": spec("protocol", "range: alpha", alpha=NAN),
    "alpha infinity": spec("protocol", "range: alpha", alpha=INFINITY),
    "alpha as an integer": spec("protocol", "its form", alpha=4),
    "alpha as a text": spec("protocol", "its form", alpha="4.0"),
    "rank 10^6": spec("protocol", "range: rank", rank=10**6),
    "rank 10^4000": spec("protocol", "range: rank", rank=10**4000),
    "rank 128": spec("policy", "rank 128 is above 64", rank=128),
    "rank 0": spec("protocol", "range: rank", rank=0),
    "rank 4 and our initial adapter": spec("model_hash", "initial adapter differs", rank=4),
    "another seed": spec("model_hash", "initial adapter differs", seed=7),
    "a negative seed": spec("protocol", "range: seed", seed=-1),
    "other targets": spec("model_hash", "initial adapter differs", targets=["k_proj"]),
    "targets auto": spec("protocol", "cannot be read", targets=["auto"]),
    "a target twice": spec("protocol", "range: targets", targets=["q_proj", "q_proj"]),
    "65 targets": spec("protocol", "range: targets", targets=[f"layer_{number}" for number in range(65)]),
    "no targets": spec("protocol", "range: targets", targets=[]),
    "a target with an escape": spec("protocol", "range: targets", targets=["\x1b[2Jq_proj"]),
    "an unknown kind": spec("protocol", "cannot be read", kind="dense\x1b[2J"),
    "kind full": spec("model_hash", "initial adapter differs", kind="full"),
    "spec with a key too many": spec("protocol", "its form", extra=1),
    "spec without blanks": one(
        lambda hostile: hostile.planned(spec=hostile.plan().spec.replace(" ", "")), "protocol", "its form"
    ),
    "spec with a key twice": one(
        lambda hostile: hostile.planned(spec=hostile.plan().spec.replace("{", '{"alpha": 1e-12, ')), "protocol"
    ),
    "spec of brackets": one(unread("[" * 30_000), "protocol", "cannot be read"),
    "spec that is no JSON": one(unread("{"), "protocol", "cannot be read"),
    "spec that is a list": one(unread("[]"), "protocol", "cannot be read"),
    # the plan
    "clip denormal": dp("protocol", forged(clip=1.4e-41), "range: clip"),
    "clip 1e-7": dp("protocol", forged(clip=1e-7), "range: clip"),
    "clip 1e7": dp("protocol", forged(clip=1e7), "range: clip"),
    "clip NaN": dp("protocol", forged(clip=NAN), "cannot be read"),
    "clip an integer": dp("protocol", forged(clip=1), "range: clip"),
    "clip 1e-6": plan("policy", "clip 1e-06 is outside 0.001 to 100", clip=1e-6),
    "clip 1e6": plan("policy", "clip 1e+06 is outside 0.001 to 100", clip=1e6),
    "rate denormal": dp("protocol", forged(rate=1e-320), "range: rate"),
    "rate 1e-8": plan("policy", "rate 1e-08 is outside", rate=1e-8),
    "rate 5": plan("policy", "rate 5 is outside", rate=5.0),
    "epsilon 1001": dp("protocol", forged(epsilon=1001.0), "range: epsilon"),
    "epsilon 1000 in one round": plan("policy", "the round alone costs epsilon", epsilon=1000.0, rounds=1),
    "epsilon 40": plan("policy", "the round alone costs epsilon", epsilon=40.0),
    "delta .001": plan("policy", "delta 0.001 is above ours", delta=1e-3),
    "delta 1e-300": dp("protocol", forged(delta=1e-300), "range: delta"),
    "1,001 steps": plan("policy", "1001 steps are more than 1000", steps=1001),
    "10^10 steps": dp("protocol", forged(rounds=10**4, steps=10**6), "rounds * steps"),
    "0 steps": dp("protocol", forged(steps=0), "range: steps"),
    "a batch of 0": dp("protocol", forged(batch=0), "range: batch"),
    "a batch of all and one more": plan("policy", batch=ROWS + 1),
    "rounds true": dp("protocol", forged(rounds=True), "range: rounds"),
    "three bounds at once": plan("policy", "clip 1000 is|rate 9 is|2000 steps are", clip=1e3, rate=9.0, steps=2000),
    "plan with blanks": dp("protocol", lambda text: text.replace(",", ", "), "its form"),
    "plan with a key too many": dp("protocol", forged(weight=3), "cannot be read"),
    "plan without its spec": dp("protocol", lambda text: text.replace('"spec"', '"spek"'), "cannot be read"),
    "plan that is no JSON": dp("protocol", lambda text: text[:-1], "cannot be read"),
    "plan of brackets": dp("protocol", lambda _: "[" * 60_000, "cannot be read"),
    "plan of digits": dp("protocol", lambda _: "9" * 60_000, "cannot be read"),
    "another LLM": plan("model_hash", "is another one than the provider's", llm_sha256="0" * 64),
    "an LLM's hash in capitals": plan("protocol", "range: llm_sha256", llm_sha256="A" * 64),
    "another initial adapter": plan("model_hash", "initial adapter differs", initial_sha256="0" * 64),
    # the round; what it may not be for any member is in `RoundMoves`
    "round 0": config("policy", "over one zero", round=0, attempt=1),
    "round 4 of 3": config("policy", "round 4 is outside the plan's 3", round=4),
    "dim 5": config("model_hash", "bytes, not 20", dim=5),
    "the fields of version 1": one(
        lambda hostile: hostile.begin() | {"spec": '{"alpha": 1e-12}', "llm_hash": b"", "initial_hash": b""},
        None,
        charged=1,
    ),
    # U
    "U a byte short": one(
        lambda hostile: hostile.begin(update=update_bytes(hostile.federation._update)[:-1]), "model_hash", "bytes, not"
    ),
    "no U": one(lambda hostile: hostile.begin(update=b""), "model_hash", "0 bytes, not"),
    "40 MB of U": one(lambda hostile: hostile.begin(update=bytes(40_000_000)), "model_hash", "40000000 bytes, not"),
    "another U": one(
        lambda hostile: hostile.begin(update=b"\1" * len(update_bytes(hostile.federation._update))), "model_hash"
    ),
    "U with NaN": one(
        lambda hostile: hostile.starting_at(np.full_like(hostile.federation._update, NAN)),
        "model_hash",
        "values up to 1e+06",
    ),
    "U of 1e30": one(
        lambda hostile: hostile.starting_at(np.full_like(hostile.federation._update, 1e30)),
        "model_hash",
        "values up to 1e+06",
    ),
    "U that everybody gets": one(
        lambda hostile: hostile.starting_at(np.full_like(hostile.federation._update, 1e-3)), None, charged=1
    ),
    "an unknown message": Move(lambda hostile: [("train.evil", hostile.begin())], ("protocol",)),
    # adapters
    "a stranger's adapter rides along": one(riding(signature=bytes(64)), "adapter"),
    "an adapter of another run rides along": one(riding(run_id="an-old-run"), "adapter"),
    "another spec than the signed one": Move(huge_tiny(False), ("adapter",), says="not signed by the pinned"),
    "a signed spec of rank 4096": Move(huge_tiny(True), (None,), says="rank 4096 is above 64"),  # stored, not scored
}


class TestOrganizationRounds(RoundMoves):
    """An organization with its ledger, by the function that its worker answers with."""

    @pytest.fixture
    def hostile(self, deployed: Deployment, provider: Provider, tmp_path: Path) -> HostileRounds:
        return HostileRounds(deployed, provider, tmp_path)


@pytest.mark.parametrize("name", MOVES)
def test_a_move_is_refused_or_harmless_and_charged_exactly(hostile: Hostile, name: str) -> None:
    move = MOVES[name]
    messages = move.messages(hostile)
    memory = resident_mb()
    assert tuple(hostile.code(*message) for message in messages) == move.codes
    assert abs(hostile.spent() - charge_of(move.charged)) < 1e-9
    if move.says:
        assert all(part in hostile.log() for part in move.says.split("|"))
    assert len((hostile.folder / "client.log").read_text() if any(move.codes) else "") < 5000
    assert resident_mb() - memory < 300 or move.charged


def test_more_than_forty_moves() -> None:
    assert len(MOVES) > 40


def test_the_folders_are_as_the_commands_make_them(hostile: Hostile) -> None:
    organization = load_organization(hostile.folder)
    assert organization.config.simulation is None
    assert organization.config.policy == PolicySection()


def advert_of(hostile: Hostile, folder: Path, config: RoundConfig) -> bytes:
    """The advert of the organization in ``folder``, which has trained and paid."""
    hostile.folder = folder
    fields = hostile.ask(BEGIN, hostile.begin(config))
    assert REFUSAL not in fields, hostile.log()
    return bytes(fields["payload"])


def test_a_spec_for_four_and_another_for_the_fifth_never_meet(
    deployed: Deployment, provider: Provider, tmp_path: Path
) -> None:
    """Both specs are within everybody's policy, and one sum over both would be the fifth's update alone."""
    hostile = Hostile(deployed, provider, tmp_path)
    folders = [shutil.copytree(member.folder, tmp_path / member.name) for member in deployed.organizations]
    honest = hostile.config(1)
    small, large = (
        replace(
            honest,
            dp=replace(
                hostile.plan(), spec=json.dumps(json.loads(hostile.plan().spec) | {"alpha": alpha}, sort_keys=True)
            ).canonical(),
        )
        for alpha in (0.1, 1000.0)
    )
    assert small.commitment != large.commitment
    four = [advert_of(hostile, folder, small) for folder in folders[:4]]
    fifth = advert_of(hostile, folders[4], large)
    roster = hostile.federation.roster
    server = SecAggServer(small, roster)
    for advert in four:
        server.receive_advert(advert)
    with pytest.raises(WrongRound):  # an honest state machine does not even take it
        server.receive_advert(fifth)
    import hashlib

    keys = [Identity.load(folder / "identity.key").public for folder in folders]
    by_member = dict(zip(map(roster.index, keys), [*four, fifth], strict=True))
    hashes = {i: hashlib.sha256(by_member[i]).digest() for i in sorted(by_member)}
    for folder, own in zip(folders, (small, small, small, small, large), strict=True):  # a server that cheats does
        me = roster.index(Identity.load(folder / "identity.key").public)
        shown = tuple(by_member[i] for i in sorted(by_member) if i != me)
        hostile.folder = folder
        payload = Directory(hashes, shown).encode(own.commitment)
        assert hostile.code(MESSAGE_TYPES["share"], StagePayload(1, own.attempt, payload).to_fields()) == "protocol"
        assert "WrongRound" in hostile.log()
        assert abs(hostile.spent() - charge_of(1)) < 1e-9  # for the round that each of them trained


POLICIES: dict[str, tuple[dict[str, Any], str]] = {
    "clip": ({"clip": (0.6, 1.0)}, "clip 0.5 is outside 0.6 to 1"),
    "rate": ({"rate": (1e-6, 1e-3)}, "rate 0.01 is outside 1e-06 to 0.001"),
    "max_rank": ({"max_rank": 1}, "rank 2 is above 1"),
    "alpha": ({"alpha": (8.0, 16.0)}, "alpha 4 is outside 8 to 16"),
    "max_steps": ({"max_steps": 1}, "2 steps are more than 1"),
    "max_round_epsilon": ({"max_round_epsilon": 2.0}, "the round alone costs epsilon"),
    "min_sigma": ({"min_sigma": 50.0}, "sigma"),
    "min_rows": ({"min_rows": ROWS + 1}, f"{ROWS} rows are fewer than {ROWS + 1}"),
    "weight_rules": ({"weight_rules": ("examples",)}, "weight rule uniform is not among examples"),
    "groups": ({"groups": 3}, "split into 1 groups, not 3"),
    "attempts": ({"attempts": 1}, "had 1 attempts here"),
    "hours": ({"hours": ("20:00-06:00",)}, "12:00 UTC is outside 20:00-06:00"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_every_bound_of_the_policy_is_kept(hostile: Hostile, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "utc_now", lambda: datetime(2026, 3, 1, 12, 0, tzinfo=UTC))
    policy, says = POLICIES[name]
    paid = int(name == "attempts")
    if paid:
        assert hostile.code(BEGIN, hostile.begin()) is None
    hostile.change(**policy)
    assert hostile.code(BEGIN, hostile.begin()) == "policy"
    assert says in hostile.log()
    assert abs(hostile.spent() - charge_of(paid)) < 1e-9


def test_every_key_of_the_policy_is_played() -> None:
    assert set(POLICIES) | {"min_difference", "rest_rounds"} == set(PolicySection.model_fields)


def test_examples_are_an_organizations_own_choice(hostile: Hostile) -> None:
    hostile.change(weight_rules=("uniform", "examples"))
    assert hostile.code(BEGIN, hostile.begin(hostile.config(weight_rule="examples"))) is None


@pytest.mark.parametrize(
    ("hours", "time", "within"),
    [
        ((), "12:00", True),
        (("20:00-06:00",), "19:59", False),
        (("20:00-06:00",), "20:00", True),
        (("20:00-06:00",), "00:00", True),
        (("20:00-06:00",), "05:59", True),
        (("20:00-06:00",), "06:00", False),
        (("00:00-24:00",), "23:59", True),
        (("18:00-24:00",), "00:00", False),
        (("01:00-02:00", "12:00-13:00"), "12:30", True),
        (("01:00-02:00", "12:00-13:00"), "02:00", False),
    ],
)
def test_hours_are_windows_of_the_day(hours: tuple[str, ...], time: str, within: bool) -> None:
    hour, minute = map(int, time.split(":"))
    assert bounds.within_hours(hours, datetime(2026, 3, 1, hour, minute, tzinfo=UTC)) is within
