"""What a round's training costs, and what its refusals tell: the real begin path with real ledgers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.bounds import require_rows
from clients.handlers import handle
from clients.node.worker import tell_unusable_rows
from clients.node_store import NodeStore
from clients.organization import load_organization
from gradtf_fl.config import PolicySection, PrivacySection
from gradtf_fl.flower import OpenRound, Refused, RoundKey, answered
from gradtf_fl.privacy import DpEvent, epsilon_prv, import_ledger, ledger_rows, noise_multiplier, read_ledger
from gradtf_fl.round_messages import MESSAGE_TYPES, REFUSAL, TrainingPlan
from gradtf_fl.secagg import decode_configs, encode_configs
from gradtf_fl.tasks import write_rows
from gradtf_fl.training.private_adam import PrivateAdam
from tests.clients.test_client_border import Bench
from tests.strategies.federation_kit import ROWS, Kit, random_rows

MakeKit = Callable[..., Kit]
BEGIN, MASK = MESSAGE_TYPES["advertise"], MESSAGE_TYPES["mask"]
STEPS = 6
DELTA = 1e-5


@pytest.fixture
def bench(make_kit: MakeKit) -> Bench:
    return Bench(make_kit(budget=50.0, steps=STEPS))


def charges(bench: Bench) -> list[tuple[str, DpEvent]]:
    """(state, event) of each charge, in order."""
    ledger = bench.kit.folders[0] / "ledger.sqlite"
    if not ledger.exists():
        return []
    return [(charge.state, charge.event) for charge in read_ledger(ledger).content.charges]


def spent(bench: Bench) -> float:
    """Epsilon (PRV) of all that counts."""
    return epsilon_prv(read_ledger(bench.kit.folders[0] / "ledger.sqlite").content.events, DELTA)


def stored(opened: OpenRound) -> list[float]:
    """The update vector that is not masked yet."""
    assert opened.vector is not None
    return np.concatenate(list(opened.vector)).tolist()


def one_round(bench: Bench) -> DpEvent:
    """What a round costs by the declared figure."""
    plan = bench.kit.plan
    q = plan.batch / ROWS
    return DpEvent(noise_multiplier(plan.epsilon, DELTA, q, plan.rounds * STEPS), q, STEPS)


def fail_in_step(monkeypatch: pytest.MonkeyPatch, name: str, step: int, error: BaseException) -> None:
    """The optimizer's method ``name`` raises in the given step, once its real work is done."""
    real = getattr(PrivateAdam, name)

    def fail(self: PrivateAdam, *arguments: Any) -> Any:
        found = real(self, *arguments)
        if self.steps == step:
            raise error
        return found

    monkeypatch.setattr(PrivateAdam, name, fail)


# A failed training ---------------------------------------------------------------------------------------------


def test_an_error_before_the_first_noise_costs_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        # the first clipped sum is done, no noise is added yet; rehearsals never get to a real step's pre_step
        fail_in_step(patch, "zero_grad", 0, RuntimeError("a defect"))
        assert bench.code(BEGIN, bench.begin().to_fields()) == "internal"
    assert [state for state, _ in charges(bench)] == ["released"]
    assert spent(bench) == 0
    assert not (bench.kit.folders[0] / "training.safetensors").exists()
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert [state for state, _ in charges(bench)] == ["released", "settled"]
    assert spent(bench) == pytest.approx(epsilon_prv([one_round(bench)], DELTA), abs=1e-9)


@pytest.mark.parametrize("step", [1, STEPS - 1])
def test_an_error_after_noise_is_paid_once_and_finished_by_the_next_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        fail_in_step(patch, "clip_and_accumulate", step, RuntimeError("a defect"))
        for _ in range(2):  # however often
            assert bench.code(BEGIN, bench.begin().to_fields()) == "internal"
            assert charges(bench) == [("reserved", one_round(bench))]
    assert spent(bench) == pytest.approx(epsilon_prv([one_round(bench)], DELTA), abs=1e-9)
    assert (bench.kit.folders[0] / "training.safetensors").stat().st_mode & 0o777 == 0o600
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert charges(bench) == [("settled", one_round(bench))]
    assert not (bench.kit.folders[0] / "training.safetensors").exists()


def test_a_resumed_training_ends_where_an_undisturbed_one_does(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = []
    for disturbed in (False, True):
        bench = Bench(make_kit(f"disturbed-{disturbed}", budget=50.0, steps=STEPS))
        with monkeypatch.context() as patch:
            if disturbed:
                fail_in_step(patch, "clip_and_accumulate", 3, RuntimeError("a defect"))
                assert bench.code(BEGIN, bench.begin().to_fields()) == "internal"
        assert bench.code(BEGIN, bench.begin().to_fields()) is None
        with NodeStore(bench.kit.folders[0] / "state.sqlite").stage(1, int(disturbed)) as opened:
            vectors.append(stored(opened))
    assert vectors[0] == vectors[1]


def test_an_error_while_the_adapter_moves_stays_counted_and_is_paid_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_in_step(patch, "scale_grad", 2, RuntimeError("a defect"))
        assert bench.code(BEGIN, bench.begin().to_fields()) == "internal"
    assert charges(bench) == [("aborted", one_round(bench))]
    assert not (bench.kit.folders[0] / "training.safetensors").exists()
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    both = [one_round(bench)] * 2
    assert charges(bench) == [("aborted", both[0]), ("settled", both[1])]
    assert spent(bench) == pytest.approx(epsilon_prv(both, DELTA), abs=1e-9)


def test_other_rows_do_not_continue_a_training(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_in_step(patch, "clip_and_accumulate", 2, RuntimeError("a defect"))
        assert bench.code(BEGIN, bench.begin().to_fields()) == "internal"
    write_rows(bench.kit.folders[0] / "train.jsonl", random_rows(77, ROWS))
    assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
    assert charges(bench) == [("aborted", one_round(bench))]
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert [state for state, _ in charges(bench)] == ["aborted", "settled"]


KILLED = """
import os, signal, sys
from pathlib import Path
from clients.handlers import handle
from clients.organization import load_organization
from gradtf_fl.training.private_adam import PrivateAdam

real = PrivateAdam.clip_and_accumulate
def killed(self):
    real(self)
    if self.steps == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
PrivateAdam.clip_and_accumulate = killed
import msgpack
organization = load_organization(Path(sys.argv[1]), simulated=True)
handle(organization, "train.begin", msgpack.unpackb(Path(sys.argv[2]).read_bytes()))
"""


@pytest.mark.parametrize("steps", [STEPS, pytest.param(14, marks=pytest.mark.slow)])
def test_the_same_message_after_kill_9_finishes_the_same_charge(make_kit: MakeKit, tmp_path: Path, steps: int) -> None:
    """Killed before anything is saved, and after the tenth step is; nothing had left in either case."""
    import msgpack

    bench = Bench(make_kit(budget=50.0, steps=steps))
    fields = bench.begin().to_fields()
    (tmp_path / "begin").write_bytes(msgpack.packb(fields))
    command = [sys.executable, "-c", KILLED, str(bench.kit.folders[0]), str(tmp_path / "begin"), str(steps - 2)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [state for state, _ in charges(bench)] == ["reserved"]
    assert (bench.kit.folders[0] / "training.safetensors").exists() == (steps > 10)
    assert bench.code(BEGIN, fields) is None
    ((state, event),) = charges(bench)
    assert (state, event.steps) == ("settled", steps)
    assert bench.code(BEGIN, fields) == "stale"  # it was answered now


def test_a_ledger_that_was_put_back_opens_no_charge_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its export was made while a round was trained: the charge is open there, and was released since."""
    folder = bench.kit.folders[0]
    with monkeypatch.context() as patch:
        fail_in_step(patch, "clip_and_accumulate", 3, RuntimeError("a defect"))
        assert bench.code(BEGIN, bench.begin().to_fields()) == "internal"
    export = ledger_rows(folder / "ledger.sqlite")
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    with NodeStore(folder / "state.sqlite").stage(1, 1) as opened:
        opened.vector = None  # masked
    for path in folder.glob("ledger.*"):
        path.unlink()
    import_ledger(export, folder / "ledger.sqlite")
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert [state for state, _ in charges(bench)] == ["reserved", "settled"]


def test_an_update_that_was_masked_is_never_masked_again(bench: Bench) -> None:
    """What reached the stage mask may be in a sum: the next attempt trains its own, under its own charge."""
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    store = NodeStore(bench.kit.folders[0] / "state.sqlite")
    with store.stage(1, 1) as opened:
        first, opened.vector = stored(opened), None  # as `Member` leaves it when it is masked
    assert len(charges(bench)) == 1
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert len(charges(bench)) == 2
    with store.stage(1, 2) as opened:
        assert stored(opened) != first


def test_an_update_goes_only_into_the_round_that_it_was_trained_for(bench: Bench) -> None:
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert bench.code(BEGIN, bench.begin(clip=2.0).to_fields()) is None  # other bounds, another update
    assert len(charges(bench)) == 2


# What refusals tell --------------------------------------------------------------------------------------------


class Attacked:
    """An organization that a server asks what it likes, in as many runs as it likes."""

    def __init__(self, bench: Bench, rows: int) -> None:
        self.folder, self.asked = bench.kit.folders[0], 0
        write_rows(self.folder / "train.jsonl", random_rows(0, rows))
        self.begin = bench.begin()
        self.config = decode_configs(self.begin.configs)[0]

    def answer(self, **plan: Any) -> tuple[object, ...]:
        """All of a reply that is not random: its fields, their types and sizes, and the code of a refusal."""
        self.asked += 1
        asked = replace(TrainingPlan.from_canonical(self.config.dp), rounds=1, steps=1, **plan)
        config = replace(self.config, run_id=f"run-{self.asked}", dp=asked.canonical())
        fields = replace(self.begin, configs=encode_configs([config])).to_fields()
        reply = answered(
            lambda: handle(load_organization(self.folder, simulated=True), BEGIN, fields), BEGIN, lambda: None
        )
        return tuple((name, len(value) if isinstance(value, bytes) else value) for name, value in sorted(reply.items()))


def attack(target: Attacked, count: int, epsilons: Sequence[float]) -> tuple[list[object], list[int]]:
    """What a server finds out by ``count`` plans: all answers, and the largest batch that each search saw accepted."""
    draw = random.Random(count)
    answers: list[object] = []
    found: list[int] = []
    while len(answers) < count:
        epsilon, low, high = draw.choice(epsilons), 0, draw.choice([200, 2**20])
        while high - low > 1 and len(answers) < count:
            batch = (low + high) // 2
            answers.append(target.answer(epsilon=epsilon, batch=batch))
            low, high = (low, batch) if answers[-1] == REFUSED else (batch, high)
        found.append(low)
    return answers, found


REFUSED = ((REFUSAL, "policy"),)
FAST = 24, (200.0,)
SLOW = 10_000, (8.0, 20.0, 100.0, 300.0)
LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize(
    ("count", "epsilons"),
    [FAST, pytest.param(*SLOW, marks=LONG)],
    ids=["24", "10000"],
)
def test_a_server_learns_nothing_of_the_number_of_rows(
    make_kit: MakeKit, count: int, epsilons: Sequence[float]
) -> None:
    """64 rows and 95 are both declared as 64: every answer is the same, whatever is asked, and it finds 64 in both."""
    answers, found = [], []
    for rows in (ROWS, 95):
        bench = Bench(make_kit(f"{rows}", budget=1000.0, steps=1))
        policy = bench.kit.config(0).policy.model_copy(update={"max_round_epsilon": 1000.0, "min_sigma": 0.001})
        bench.kit.change(0, policy=policy)
        said, boundaries = attack(Attacked(bench, rows), count, epsilons)
        answers.append(said)
        found.append(boundaries)
    assert answers[0] == answers[1]
    assert found[0][0] == ROWS
    assert REFUSED in answers[0]
    assert len(set(answers[0])) > 1


@pytest.mark.parametrize("rows", [ROWS // 2, 95])
def test_charge_weight_and_message_come_from_the_declared_figure(make_kit: MakeKit, rows: int) -> None:
    seen: list[object] = []
    for there in (ROWS, rows):
        bench = Bench(make_kit(f"of-{len(seen)}", budget=50.0, steps=2))
        policy = bench.kit.config(0).policy.model_copy(update={"weight_rules": ("uniform", "examples")})
        bench.kit.change(0, policy=policy)
        write_rows(bench.kit.folders[0] / "train.jsonl", random_rows(0, there))
        reply = bench.ask(BEGIN, bench.begin(weight_rule="examples").to_fields()).content["gradtf"]
        with NodeStore(bench.kit.folders[0] / "state.sqlite").stage(1, 0) as opened:
            seen.append((charges(bench), opened.weight, {name: type(v) for name, v in reply.items()}))
        log = bench.kit.folders[0] / "client.log"
        assert log.exists() == (there < ROWS)
    assert seen[0] == seen[1]
    assert "declared is 64, the training file has 32 rows" in log.read_text() if rows < ROWS else True


@pytest.mark.parametrize("fault", ["absent", "unreadable", "unscored"])
def test_rows_that_cannot_be_used_have_the_same_word_as_a_plan_that_does_not_fit(bench: Bench, fault: str) -> None:
    train = bench.kit.folders[0] / "train.jsonl"
    if fault == "absent":
        train.unlink()
    else:
        train.write_text({"unreadable": "not json\n", "unscored": '{"prompt": "", "answer": "7"}\n'}[fault])
    plan = {"batch": ROWS + 1}
    said = [bench.code(BEGIN, bench.begin(**changes).to_fields()) for changes in ({"dp": plan}, {})]
    assert said == ["policy", "policy"]
    assert spent(bench) == 0


def test_a_node_that_starts_says_which_rows_it_cannot_use(bench: Bench) -> None:
    folder = bench.kit.folders[0]
    bench.kit.change(0, simulation=None)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o700 if path.is_dir() else 0o600)
    tell_unusable_rows(folder)
    assert not (folder / "client.log").exists()
    (folder / "train.jsonl").write_text('{"prompt": "", "answer": "7"}\n' * 3)
    tell_unusable_rows(folder)
    log = (folder / "client.log").read_text()
    assert "these rows can't be used, every round will be refused" in log
    assert "3 of 3 rows have no token that is scored" in log
    assert "64 rows are public, 3 are there" in log


def test_no_file_is_opened_for_a_plan_that_is_refused(make_kit: MakeKit) -> None:
    """A named pipe without a writer would hold who opens it for ever."""
    bench = Bench(make_kit(budget=0.5))
    train = bench.kit.folders[0] / "train.jsonl"
    train.unlink()
    os.mkfifo(train)
    too_large = {"batch": ROWS + 1}

    def held(*_: object) -> None:
        raise TimeoutError("the file was opened")

    before = signal.signal(signal.SIGALRM, held)
    signal.alarm(30)
    try:
        assert bench.code(BEGIN, bench.begin().to_fields()) == "policy"
        assert bench.code(BEGIN, bench.begin(dp=too_large, run_id="b").to_fields()) == "policy"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_what_is_left_of_a_budget_cannot_be_felt_out(make_kit: MakeKit) -> None:
    """7.80 was refused and 7.75 taken, for nothing: now only half of what was refused is looked at."""
    target = Attacked(Bench(make_kit(budget=3.0, steps=1)), ROWS)

    def taken(epsilon: float) -> bool:
        return target.answer(epsilon=epsilon, batch=16)[0][0] != REFUSAL  # type: ignore[index]

    assert [taken(epsilon) for epsilon in (4.0, 2.9, 2.3)] == [False] * 3
    assert taken(1.4)
    organization = load_organization(target.folder, simulated=True)
    store = organization.store()
    assert not store.compares("train", 3.0, 100.0)
    assert store.compares("train", 4.0, 100.0)  # the organization raised its budget


def test_a_run_keeps_the_plan_that_it_began_with(bench: Bench) -> None:
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    other = {"epsilon": 1.0}
    assert bench.code(BEGIN, bench.begin(dp=other).to_fields()) == "policy"
    assert bench.code(BEGIN, bench.begin().to_fields()) is None
    assert bench.code(BEGIN, bench.begin(dp=other, run_id="another").to_fields()) is None


def test_a_run_may_only_get_more_rounds(bench: Bench) -> None:
    """`server.toml` says three rounds where it said two: the same run goes on, and never back."""
    for rounds, code in ((2, None), (3, None), (2, "policy"), (3, None)):
        assert bench.code(BEGIN, bench.begin(dp={"rounds": rounds}).to_fields()) == code


def test_all_attempts_at_a_round_have_one_start(bench: Bench) -> None:
    """Else a server that keeps the last adapter back moves U by nothing that matters between two attempts: their sums
    would be over two models, and might differ by one organization."""
    assert bench.code(BEGIN, bench.begin(2).to_fields()) is None
    bench.federation._update[0, 0] = 1e-30
    assert bench.code(BEGIN, bench.begin(2).to_fields()) == "model_hash"
    bench.federation._update[0, 0] = 0.0
    assert bench.code(BEGIN, bench.begin(2).to_fields()) is None


def test_of_two_processes_with_one_attempt_the_first_alone_opens_it(tmp_path: Path) -> None:
    """A process that lost its node still trains, and another one has the same message: two adverts for one C would be
    two members for one, and the second training nobody's to mask."""
    store, key = NodeStore(tmp_path / "state.sqlite"), RoundKey("run", 1, 0)
    for _ in range(2):
        store.claim(key, "plan", b"training")
    store.open(OpenRound(key, b"first", np.ones(3), 1.0), b"training")
    with pytest.raises(Refused, match="while this one was trained"):
        store.open(OpenRound(key, b"second", np.zeros(3), 1.0), b"training")
    with store.stage(1, 0) as opened:
        assert opened.protocol == b"first"


@pytest.mark.parametrize(("unit", "units"), [("row", "rows"), ("patient", "persons")])
def test_too_few_are_told_in_the_unit_that_is_declared(unit: str, units: str) -> None:
    privacy = PrivacySection(budget=1.0, declared=20, unit=unit)
    with pytest.raises(Refused, match=rf"20 {units} are fewer than 32"):
        require_rows(PolicySection(), privacy)


def test_an_unanswered_attempt_may_be_claimed_again_and_a_refused_one_may_not(tmp_path: Path) -> None:
    store, key = NodeStore(tmp_path / "state.sqlite"), RoundKey("run", 1, 0)
    for _ in range(2):
        assert not store.claim(key, "plan", b"training")
        assert store.last_round("run") < (1, 0)
    store.give_up(key)
    with pytest.raises(Refused, match="not above"):
        store.claim(key, "plan", b"training")
