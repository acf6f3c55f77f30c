"""What a round asks of a Flower app: both sides compute it from what was sent, so that C binds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from gradtf_fl.flower.arrays import Arrays, decoded, model_digest, records_digest
from gradtf_fl.round_messages import SECTION, MalformedFields

FORMAT = "gradtf/flower/v1"
MAX_EXAMPLES = 2**40
MAX_NAMES, MAX_NAME = 64, 128  # metrics that a round may ask for, characters of a name


def run_config_digest(config: Mapping[str, Any]) -> str:
    """`records_digest` of a run's config (hex): what an app reads in ``context.run_config``."""
    return records_digest(RecordDict({"run_config": ConfigRecord(dict(config))})).hex()


@dataclass(frozen=True)
class AppTask:
    """``RoundConfig.dp`` of a secure average, in canonical JSON: all that decides what is trained besides the model.

    Attributes:
        message_type: Flower's type of the message, which chooses the app's function.
        arrays: name of the record that holds the model.
        records: `records_digest` of all other records of the message, but ours (hex).
        weighted_by: metric of the app's reply that holds its number of examples.
        max_examples: examples that count as the full weight; 0 under the rule "uniform".
        metrics: names of the metrics that the server would like to have in clear.
        run_config: `run_config_digest` of the run's config.
    """

    message_type: str
    arrays: str
    records: str
    weighted_by: str
    max_examples: int = 0
    metrics: tuple[str, ...] = ()
    run_config: str = run_config_digest({})

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no blanks."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_canonical(cls, text: str) -> AppTask:
        """The task in a round's ``dp`` text.

        Raises:
            MalformedFields: not canonical, of another format, or with a value of another type or out of its range.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            if values.pop("format") != FORMAT:
                raise MalformedFields("what the round asks is of another format")
            task = cls(**{**values, "metrics": tuple(values["metrics"])})
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise MalformedFields("what the round asks cannot be read") from error
        texts = [task.message_type, task.arrays, task.records, task.weighted_by, task.run_config, *task.metrics]
        sound = (
            all(type(text) is str and len(text) <= MAX_NAME for text in texts)
            and len(task.metrics) <= MAX_NAMES
            and type(task.max_examples) is int
            and 0 <= task.max_examples <= MAX_EXAMPLES
        )
        if not sound or task.canonical() != text:
            raise MalformedFields("what the round asks has a value outside its range")
        return task


@dataclass(frozen=True)
class Sent:
    """What a message brought, but for our own record: the one thing that both sides hash.

    Attributes:
        arrays: name of the record of the model.
        model: its arrays.
        model_hash: their `model_digest`.
        records: `records_digest` of the other records (hex).
    """

    arrays: str
    model: Arrays
    model_hash: bytes
    records: str

    @classmethod
    def of(cls, content: RecordDict) -> Sent:
        """What is in ``content``.

        Raises:
            MalformedFields: not exactly one record of arrays, or one of its arrays cannot be read.
        """
        names = [name for name, record in content.items() if isinstance(record, ArrayRecord)]
        if len(names) != 1:
            raise MalformedFields(f"a message has {len(names)} records of arrays, not one")
        others = RecordDict({name: record for name, record in content.items() if name not in (*names, SECTION)})
        model = decoded(content.array_records[names[0]])
        return cls(names[0], model, model_digest(model), records_digest(others).hex())
