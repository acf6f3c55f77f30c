"""Tasks: rows of prompt and answer, their encoding and metric.

House Rules is the embedded benchmark. Text tasks (the paper's six data sets, own ones by TOML) are read by
`load_task`, and scored by generating: `score_task`.
"""

from gradtf_fl.tasks.federation import OrganizationData, house_rules_federation, public_rows
from gradtf_fl.tasks.own_tasks import load_own_task
from gradtf_fl.tasks.paper_datasets import PAPER_TASKS
from gradtf_fl.tasks.rows import IGNORED, Row, TokenRows, encode_rows, exact_match, read_prompts, read_rows, write_rows
from gradtf_fl.tasks.scoring import TaskScore, score_task
from gradtf_fl.tasks.sources import FolderSource
from gradtf_fl.tasks.splits import split_public_private
from gradtf_fl.tasks.text_tasks import Example, LoadedTask, TextTask, load_task

__all__ = [
    "IGNORED",
    "PAPER_TASKS",
    "Example",
    "FolderSource",
    "LoadedTask",
    "OrganizationData",
    "Row",
    "TaskScore",
    "TextTask",
    "TokenRows",
    "encode_rows",
    "exact_match",
    "house_rules_federation",
    "load_own_task",
    "load_task",
    "public_rows",
    "read_prompts",
    "read_rows",
    "score_task",
    "split_public_private",
    "write_rows",
]
