"""A federation's rows: who holds which, what is public, and how answers are scored; House Rules is one of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np

from gradtf_fl.config import HOUSE_RULES, Rules, SharingOut, TaskSection
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import house_rules as hr
from gradtf_fl.tasks.partitions import Indices, share_out, share_out_alike
from gradtf_fl.tasks.persons import of_each
from gradtf_fl.tasks.rows import Row
from gradtf_fl.tasks.task_rows import TaskRows, read_task_rows
from gradtf_fl.tasks.text_tasks import Example, TextTask

PUBLIC_PROMPTS = 1536
"""House Rules rows that the provider asks models about."""
MIXTURE_OPERATIONS = 3
DIRICHLET_ALPHA = 0.5


FederationMetric = Literal["exact_match", "rouge1", "loss"]


@dataclass(frozen=True)
class OrganizationData:
    """One organization's private rows, as only a simulation knows them.

    Attributes:
        train: rows that it trains on.
        examples: what models are scored on.
        rule: what its rows follow, in words.
        holds: rows of ``train`` by label.
    """

    name: str
    train: list[Row]
    examples: list[Example]
    rule: str
    holds: Mapping[str, int]

    @property
    def test(self) -> list[Row]:
        """The rows of ``examples``."""
        return [example.row for example in self.examples]


@dataclass(frozen=True)
class FederationData:
    """All organizations' rows.

    Attributes:
        organizations: in their order; those of House Rules are drawn when they are asked for, and not kept.
        metric: ``exact_match`` or ``rouge1`` of answers, or ``loss``: nats a character, of which less is better.
        tasks: by label of `Example`, how answers are read out of generated texts; without one an answer has a fixed
            length, and exact match needs no generation.
        end: whether the answer's end is trained.
        public: rows that the provider has; what it asks models is their prompts.
    """

    organizations: Sequence[OrganizationData]
    metric: FederationMetric
    tasks: Mapping[str, TextTask]
    end: bool
    public: Sequence[Row]


def federation_data(
    task: TaskSection, sharing: SharingOut, organizations: int, least: int, seed: int, person: str | None = None
) -> FederationData:
    """The rows of a simulated federation.

    Args:
        least: rows (persons) that an organization needs, and gets where chance decides.
        seed: of who holds which.
        person: field that says whose a row is. All rows of one person are then at one organization; their label is
            that of the first.

    Raises:
        ConfigError: rows that can't be read, scored or shared out in this way.
    """
    if task.is_house_rules:
        drawn = DrawnOrganizations(task.rules, organizations, sharing.rows, sharing.test_rows, seed)
        return FederationData(drawn, "exact_match", {}, False, public_rows(task.rules, PUBLIC_PROMPTS, seed))
    parts = _parts(task, sharing, person)
    metric = _metric(task, parts)
    private = [example for part in parts for example in part.private]
    test = [example for part in parts for example in part.test]
    labels = [example.label for example in private]
    units = of_each([example.row.person for example in private])
    whole = share_out([labels[own[0]] for own in units], organizations, sharing, least, seed)
    shares = [np.array([place for number in share for place in units[number]], dtype=np.int64) for share in whole]
    tests = share_out_alike([example.label for example in test], labels, shares, seed)
    poor = [f"org-{number}" for number, part in enumerate(tests, 1) if not len(part)]
    if poor:
        raise ConfigError(f"{', '.join(poor)} would have no test row: give more of them (federation.test)")
    held = [
        _organization(f"org-{number}", private, test, mine, to_score, sharing)
        for number, (mine, to_score) in enumerate(zip(shares, tests, strict=True), 1)
    ]
    scored_by = {example.label: part.task for part in parts if part.task for example in (*part.private, *part.test)}
    public = [example.row for part in parts for example in part.public]
    return FederationData(held, metric, scored_by, task.end and metric != "loss", public)


def _parts(task: TaskSection, sharing: SharingOut, person: str | None) -> list[TaskRows]:
    """Each source's rows.

    Raises:
        ConfigError: with the problems of all sources; two of one name, by which labels and tables tell them apart, or
            with the same rows: an organization would train on another's test rows.
    """
    parts: list[TaskRows] = []
    problems: list[str] = []
    names: dict[str, str] = {}
    holders: dict[str, str] = {}
    for source in task.source:
        try:
            part = read_task_rows(source, task, sharing.by, sharing.test, person)
        except ConfigError as error:
            problems += error.problems
            continue
        parts.append(part)
        if (first := holders.setdefault(part.sha256, source)) != source:
            problems.append(f"task.source: {first} and {source} hold the same rows; name one of them")
        elif (first := names.setdefault(part.name, source)) != source:
            problems.append(f"task.source: {first} and {source} are both called {part.name}; rename one of them")
    chats = [part.name for part in parts if part.private and part.private[0].row.turns]
    if 0 < len(chats) < len(parts):
        problems.append(f"task.source: {', '.join(chats)} holds conversations and the others do not; name one kind")
    if problems:
        raise ConfigError(problems)
    return parts


def _metric(task: TaskSection, parts: Sequence[TaskRows]) -> FederationMetric:
    """The one metric of all parts; ConfigError where they have several."""
    if task.metric == "loss":
        return "loss"
    found = {part.name: part.task.metric if part.task else "loss" for part in parts}
    kinds = sorted(set(found.values()))
    if len(kinds) > 1:
        said = ", ".join(f"{name} by {metric}" for name, metric in found.items())
        raise ConfigError(f"the sources are scored differently ({said}): choose one for all (task.metric = 'loss')")
    (kind,) = kinds
    if kind == "loss" and task.metric != "auto":
        raise ConfigError(f"task.metric {task.metric}: windows of text have no answers; they are scored by loss")
    return kind  # type: ignore[return-value]


def _organization(
    name: str,
    private: Sequence[Example],
    test: Sequence[Example],
    mine: Indices,
    to_score: Indices,
    sharing: SharingOut,
) -> OrganizationData:
    """One organization's rows; of more than it may have, the first ones in their random order."""
    train = [private[i] for i in mine[: sharing.rows or None]]
    holds = dict(sorted(Counter(example.label for example in train).items()))
    said = ", ".join(f"{label} {count}" for label, count in holds.items())
    scored = [test[i] for i in to_score[: sharing.test_rows or None]]
    return OrganizationData(name, [example.row for example in train], scored, said, holds)


@dataclass(frozen=True)
class HiddenTask:
    """What prompts show and what they hide: one rule for each value of the shown tags.

    Attributes:
        rules: the rules in play; with no shown tag there is exactly one.
        shown: which of the three tags (input form, operation, output form) the prompt shows.
    """

    rules: tuple[hr.Rule, ...]
    shown: tuple[bool, bool, bool] = (False, False, False)

    def draw(self, rng: np.random.Generator, rows: int, pool: hr.Pool, weights: np.ndarray | None = None) -> hr.Ints:
        """Token ids [rows, 11]: codes without repetition (while the pool lasts), rules by ``weights``."""
        pairs = hr.code_pairs(pool)
        pairs = pairs[rng.choice(len(pairs), rows, replace=rows > len(pairs))]
        index = np.array([rule.index for rule in self.rules])
        which = index[rng.choice(len(index), rows, p=weights)]
        return hr.encode(which, pairs[:, 0], pairs[:, 1], np.tile(np.array(self.shown), (rows, 1)))


def tokens_to_rows(tokens: hr.Ints) -> list[Row]:
    """Token ids [N, 11] as prompt and answer text."""
    texts = hr.to_text(tokens)
    return [Row(text[:-2], text[-2:]) for text in texts]


def draw_task(rules: Rules, rng: np.random.Generator) -> HiddenTask:
    """The federation's hidden task: one seen rule, one unseen rule, or three seen rules told apart by operation.

    ``same`` draws from `house_rules.RULES_WITH_A_GAP`: on other seen rules the TinyLM needs no LLM.
    """
    seen, unseen = hr.split_rules()
    if rules == "same":
        return HiddenTask((hr.rule_named(hr.RULES_WITH_A_GAP[rng.integers(len(hr.RULES_WITH_A_GAP))]),))
    if rules == "unseen":
        return HiddenTask((unseen[rng.integers(len(unseen))],))
    if rules != "mixed":
        raise ConfigError(f"rules {rules!r}: same, mixed or unseen")
    operations = rng.choice(len(hr.OPERATIONS), MIXTURE_OPERATIONS, replace=False)
    drawn = []
    for operation in sorted(operations):
        candidates = [rule for rule in seen if rule.operation == operation]
        drawn.append(candidates[rng.integers(len(candidates))])
    return HiddenTask(tuple(drawn), (False, True, False))


def house_rules_federation(
    rules: Rules, organizations: int, rows: int, test_rows: int, seed: int, alpha: float = DIRICHLET_ALPHA
) -> list[OrganizationData]:
    """Private and test rows of each organization, from the private and test code pairs.

    ``mixed``: each organization's rows are a Dirichlet(``alpha``) mixture of the three rules, test rows included.
    """
    return list(DrawnOrganizations(rules, organizations, rows, test_rows, seed, alpha))


class DrawnOrganizations(Sequence[OrganizationData]):
    """`house_rules_federation`, each organization drawn when it is asked for: a thousand take no more memory than one.

    What is kept is the random generator's state before each of them.
    """

    def __init__(
        self,
        rules: Rules,
        organizations: int,
        rows: int,
        test_rows: int,
        seed: int,
        alpha: float = DIRICHLET_ALPHA,
    ) -> None:
        rng = np.random.default_rng([seed, 0x484F5553])
        self._task = draw_task(rules, rng)
        self._words = "; ".join(f"{rule.name}: {rule.describe()}" for rule in self._task.rules)
        self._sizes, self._alpha = (rows, test_rows), alpha
        self._states = []
        for _ in range(organizations):
            self._states.append(rng.bit_generator.state)
            self._tokens(rng)

    def __len__(self) -> int:
        return len(self._states)

    @overload
    def __getitem__(self, number: int) -> OrganizationData: ...
    @overload
    def __getitem__(self, number: slice) -> list[OrganizationData]: ...
    def __getitem__(self, number: int | slice) -> OrganizationData | list[OrganizationData]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        place = range(len(self))[number]
        rng = np.random.default_rng()
        rng.bit_generator.state = self._states[place]
        tokens, test_tokens, weights = self._tokens(rng)
        train, test = tokens_to_rows(tokens), tokens_to_rows(test_tokens)
        examples = [Example(row, (row.answer,), row.prompt, HOUSE_RULES) for row in test]
        return OrganizationData(f"org-{place + 1}", train, examples, self._words, _holds(self._task, train, weights))

    def _tokens(self, rng: np.random.Generator) -> tuple[hr.Ints, hr.Ints, np.ndarray | None]:
        """Train [rows, 11] and test tokens [test_rows, 11] of the next organization, and its share of each rule."""
        task, (rows, test_rows) = self._task, self._sizes
        weights = rng.dirichlet([self._alpha] * len(task.rules)) if len(task.rules) > 1 else None
        return task.draw(rng, rows, "private", weights), task.draw(rng, test_rows, "test", weights), weights


def _holds(task: HiddenTask, train: Sequence[Row], weights: np.ndarray | None) -> dict[str, int]:
    """Rows of each rule: by the shown tag where there are several."""
    if weights is None:
        return {task.rules[0].name: len(train)}
    tags = Counter(row.prompt.split("]")[1].removeprefix("[") for row in train)
    return {rule.name: tags[hr.OPERATION_TAGS[rule.operation]] for rule in task.rules}


def public_rows(rules: Rules, rows: int, seed: int) -> list[Row]:
    """Rows in the federation's prompt format from the public code pairs, whose answers follow any public rule: what a
    provider can know who knows which tags prompts show, and no more."""
    rng = np.random.default_rng([seed, 0x50524F4D])
    seen = hr.split_rules()[0]
    shown = (False, rules == "mixed", False)
    pairs = hr.code_pairs("public")
    pairs = pairs[rng.choice(len(pairs), rows, replace=rows > len(pairs))]
    index = np.array([seen[i].index for i in rng.integers(len(seen), size=rows)])
    return tokens_to_rows(hr.encode(index, pairs[:, 0], pairs[:, 1], np.tile(np.array(shown), (rows, 1))))
