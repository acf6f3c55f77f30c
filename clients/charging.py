"""What a round's training costs: reserved before a row is read, and paid once for what is released.

- Every figure here is public or the ledger's: the plan, the number of rows that the organization declares, and what was
  spent. Rows are not even counted before the charge is written, so no refusal can reveal how many there are.
- A training that fails before its first noise gives its charge back: nothing of a row can be in what left.
- One that fails later keeps its charge open and itself in a file. The next attempt at the round finishes it for the
  same charge. A process that was killed leaves the same behind.
- Where noise was added and no whole state could be kept, the charge stays counted and the next attempt pays its own.

Of a reservation that the node's store has as unfinished nothing was released: it is forgotten there before it is
settled, and an update is masked long after that.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

from clients.node_store import NodeStore
from clients.organization import Organization, load_organization
from gradtf_fl.errors import BudgetExhausted, ConfigError
from gradtf_fl.file_names import TRAINING
from gradtf_fl.flower import Refused, RoundKey
from gradtf_fl.privacy import DpEvent, Ledger, SkellamEvent, Unit, epsilon_rdp, noise_multiplier
from gradtf_fl.round_messages import Refusal, TrainingPlan
from gradtf_fl.secagg import RoundConfig, distributed_noise, round_members


def planned_event(organization: Organization, plan: TrainingPlan) -> DpEvent:
    """One round of ``plan`` as this organization pays for it, from its declared number of rows (persons).

    Raises:
        Refused: ``policy`` where the batch is larger than that number, or no noise reaches the plan's epsilon.
    """
    privacy = organization.config.privacy
    declared, units = privacy.declared, Unit(privacy.person).plural
    if plan.batch > declared:
        raise Refused(
            Refusal.POLICY, f"the plan's batch of {plan.batch} is larger than the {declared} {units} we declare"
        )
    q = plan.batch / declared
    try:
        sigma = noise_multiplier(plan.epsilon, plan.delta, q, plan.rounds * plan.steps)
    except ConfigError as error:
        raise Refused(Refusal.POLICY, str(error)) from error
    return DpEvent(sigma, q, plan.steps)


def client_level(organization: Organization, config: RoundConfig) -> SkellamEvent | None:
    """What the sum of this round reveals of one whole organization, if it carries Skellam noise."""
    if config.noise_multiplier == 0:
        return None
    noise = distributed_noise(config, len(round_members(config, organization.roster)))
    return SkellamEvent(noise.honest_variance, noise.l2, noise.l1, releases=1, noisers=noise.noisers)


def training_id(organization: Organization, config: RoundConfig, event: DpEvent) -> bytes:
    """SHA-256 of all that decides what is trained in a round, and into what it goes: the same for each attempt."""
    same = replace(config, attempt=0, nonce=bytes(len(config.nonce)))
    text = f"{event!r}|{organization.config.privacy.dataset}"
    return hashlib.sha256(b"gradtf/training/v1\0" + same.commitment + text.encode()).digest()


def open_ledger(organization: Organization) -> Ledger:
    """The organization's ledger, with the budget of its own file."""
    privacy = organization.config.privacy
    return Ledger.open(
        organization.ledger_path,
        identity_key=organization.identity.private,
        organization=organization.config.name,
        delta=privacy.delta,
        budget={privacy.dataset: privacy.budget},
        unit=Unit(privacy.person),
    )


def refused_for_budget(folder: Path) -> bool:
    """Whether a simulated organization refused a plan because it does not fit the budget that it has now."""
    organization = load_organization(folder, simulated=True)
    privacy = organization.config.privacy
    return not organization.store().compares(privacy.dataset, privacy.budget, math.inf)


@dataclass
class OpenCharge:
    """A reservation that is trained for.

    Attributes:
        ledger: where it stands.
        store: where it is unfinished.
        reservation: its number there.
        key: the attempt that reserved it.
        state: file of the training.
        resumed: whether an earlier attempt, or this one before it was killed, began the training.
        noisy: whether noise was added in this process.
    """

    ledger: Ledger
    store: NodeStore
    reservation: int
    key: RoundKey
    state: Path
    resumed: bool
    noisy: bool = False

    @classmethod
    def reserve(
        cls,
        organization: Organization,
        store: NodeStore,
        key: RoundKey,
        event: DpEvent,
        noise: SkellamEvent | None,
    ) -> OpenCharge:
        """The round's open reservation where it has one for ``event``, else a new one.

        Raises:
            BudgetExhausted: the charge does not fit, or a cheaper one did not before (`NodeStore.compares`).
        """
        privacy, ledger, state = organization.config.privacy, open_ledger(organization), organization.folder / TRAINING
        number = store.unfinished(key)
        for charge in ledger.charges() if number is not None else ():
            found = charge.reservation, charge.state, charge.run_id, charge.round, charge.dataset
            same = (charge.event, charge.client_level) == (event, noise)
            if same and found == (number, "reserved", key.run_id, key.round, privacy.dataset):
                begun = RoundKey(key.run_id, key.round, charge.attempt)
                return cls(ledger, store, charge.reservation, begun, state, resumed=True)
        cost = epsilon_rdp((event,), privacy.delta)
        if not store.compares(privacy.dataset, privacy.budget, cost):
            raise BudgetExhausted(
                f"a plan that costs about as much (epsilon {cost:.3g} a round) did not fit the budget before: only "
                "plans of half its cost are looked at until [privacy] budget changes"
            )
        try:
            reservation = ledger.reserve(
                key.run_id, key.round, key.attempt, event, "train.begin", dataset=privacy.dataset, client_level=noise
            )
        except BudgetExhausted:
            store.too_dear(privacy.dataset, privacy.budget, cost)
            raise
        state.unlink(missing_ok=True)
        store.training_begins(key, reservation)
        return cls(ledger, store, reservation, key, state, resumed=False)

    def note_noise(self) -> None:
        """From now on something may be released."""
        self.noisy = True

    def settle(self, observed: DpEvent, noise: str) -> None:
        """The training is done."""
        self.store.training_ends()
        self.ledger.settle(self.reservation, observed, noise=noise)
        self.state.unlink(missing_ok=True)

    def failed(self, state_is_useless: bool) -> None:
        """The training ended by an error: give the charge back, keep it for the next attempt, or let it count.

        Args:
            state_is_useless: the training's file is damaged or of another training.
        """
        if state_is_useless:
            self.state.unlink(missing_ok=True)
        if not self.resumed and not self.noisy:
            self.store.training_ends()
            self.ledger.abort(self.reservation, released=False)
            self.state.unlink(missing_ok=True)
        elif state_is_useless or (self.noisy and not self.state.exists()):
            self.store.training_ends()
            self.ledger.abort(self.reservation)
