"""Tasks: rows of prompt and answer, their encoding and metric.

House Rules is the embedded benchmark. Text tasks (the paper's six data sets, own ones by TOML) are read by
`load_task`, and scored by generating: `score_task`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradtf_fl.lazy_names import lazy_names

if TYPE_CHECKING:
    from gradtf_fl.tasks import house_rules
    from gradtf_fl.tasks.chat import has_template
    from gradtf_fl.tasks.decoding import (
        Generated,
        StopRule,
        context_length,
        decode,
        fit_prompt,
        generate_greedily,
        longest_row,
    )
    from gradtf_fl.tasks.encoding import (
        WrittenRows,
        count_encoded,
        encode_rows,
        encode_written,
        end_token,
        positions,
        read_tokens,
        rows_as_tokens,
    )
    from gradtf_fl.tasks.federation import (
        DIRICHLET_ALPHA,
        MIXTURE_OPERATIONS,
        FederationData,
        HiddenTask,
        OrganizationData,
        federation_data,
        house_rules_federation,
        public_rows,
        tokens_to_rows,
    )
    from gradtf_fl.tasks.forced import LOGIT_BYTES, answer_scores, exact_match
    from gradtf_fl.tasks.house_rules import code_pairs, rule_named
    from gradtf_fl.tasks.own_tasks import load_own_task
    from gradtf_fl.tasks.paper_datasets import PAPER_TASKS
    from gradtf_fl.tasks.persons import Persons, count_units
    from gradtf_fl.tasks.row_forms import count_rows, read_prompts, read_rows, told_form
    from gradtf_fl.tasks.rows import IGNORED, Row, RowCounts, TokenRows, Turn, refuse_unscored, write_rows
    from gradtf_fl.tasks.scoring import answer_rouge1, loss_per_character, score_task
    from gradtf_fl.tasks.sources import FolderSource
    from gradtf_fl.tasks.splits import split_public_private
    from gradtf_fl.tasks.task_rows import TaskRows, first_form, read_task_rows, source_name
    from gradtf_fl.tasks.text_tasks import MAX_MALFORMED, Example, LoadedTask, TextTask, load_task
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "DIRICHLET_ALPHA",
    "IGNORED",
    "LOGIT_BYTES",
    "MAX_MALFORMED",
    "MIXTURE_OPERATIONS",
    "PAPER_TASKS",
    "Example",
    "FederationData",
    "FolderSource",
    "Generated",
    "HiddenTask",
    "LoadedTask",
    "OrganizationData",
    "Persons",
    "Row",
    "RowCounts",
    "StopRule",
    "TaskRows",
    "TextTask",
    "TokenRows",
    "Turn",
    "WrittenRows",
    "answer_rouge1",
    "answer_scores",
    "code_pairs",
    "context_length",
    "count_encoded",
    "count_rows",
    "count_units",
    "decode",
    "encode_rows",
    "encode_written",
    "end_token",
    "exact_match",
    "federation_data",
    "first_form",
    "fit_prompt",
    "generate_greedily",
    "has_template",
    "house_rules",
    "house_rules_federation",
    "load_own_task",
    "load_task",
    "longest_row",
    "loss_per_character",
    "positions",
    "public_rows",
    "read_prompts",
    "read_rows",
    "read_task_rows",
    "read_tokens",
    "refuse_unscored",
    "rows_as_tokens",
    "rule_named",
    "score_task",
    "source_name",
    "split_public_private",
    "tokens_to_rows",
    "told_form",
    "write_rows",
]
