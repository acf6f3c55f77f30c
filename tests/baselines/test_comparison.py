"""All rivals behind one interface: a table loops over them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gradtf_fl.baselines import (
    HOUSE_RULES_ROWS,
    Case,
    Controls,
    Decoding,
    FromUpdate,
    Pair,
    Settings,
    all_baselines,
    embedded_controls,
    run_baseline,
)
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks.rows import Row
from tests.baselines.pair_recipes import LLM_RECIPE, TINY_RECIPE

PRIVATE = {"w2s", "conf", "vissup"}


def test_every_rival_runs_and_says_whether_rows_leave(
    pair: Pair, case: Case, test_rows: tuple[tuple[Row, ...], ...]
) -> None:
    settings = Settings(TINY_RECIPE, LLM_RECIPE, Decoding(2), HOUSE_RULES_ROWS, 16, Decoding(8, 1.0))
    controls = Controls.load(embedded_controls())
    rivals = all_baselines(controls, pair, settings)
    names = [rival.name for rival in rivals]
    assert names[:6] == ["mean", "nearest", "ridge", "pca-ridge", "cross-lora", "proxy-tuning"]
    assert names[6:] == ["w2s", "conf", "vissup", "public-w2s", "dp-synthetic-text"]
    assert {rival.name for rival in rivals if rival.private_rows_leave} == PRIVATE
    for rival in rivals:
        outcome = run_baseline(rival, pair, case)
        assert rival.source
        assert len(outcome.score(test_rows).exact_match) == 2
        if rival.name != "proxy-tuning":
            assert outcome.updates is not None
            assert outcome.updates.shape == (2, *pair.llm.initial.shape)
            assert outcome.updates.dtype == torch.float32
    assert len(all_baselines(controls, pair, Settings(TINY_RECIPE, LLM_RECIPE, Decoding(2)))) == len(rivals) - 1
    assert all_baselines(controls, pair, settings, whole_rows=True)[-1].name == "dp-synthetic-text-whole"


def test_an_update_for_another_llm_is_refused(pair: Pair, case: Case) -> None:
    wrong = FromUpdate("wrong", "test", lambda update: update)
    with pytest.raises(ConfigError, match=r"wrong makes LLM updates \(2, 256\), this pair's are \(4, 768\)"):
        run_baseline(wrong, pair, case)


def test_controls_alone_do_not_import_torch() -> None:
    code = "import sys; from gradtf_fl.baselines import Controls; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
