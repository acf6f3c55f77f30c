"""From a project's file to a judged Grad-Transformer and a federation on it: an untrained pair of two tokenizers."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gradtf_fl import files
from gradtf_fl.config import read_project
from gradtf_fl.curation import TupleStore, curate, store
from gradtf_fl.errors import ConfigError
from gradtf_fl.preparation import ProviderWork, estimate, prepare
from gradtf_fl.preparation.judgement import BASE, OURS, TUNED, Judgement
from gradtf_fl.preparation.run import check_work
from gradtf_fl.transformer import SIZES, Backbone
from tests.cli.conftest import gradtf
from tests.curation.text_pair import write_files

TABLES = """
[task]
source = ["{data}/animals", "{data}/numbers"]
format = "text"
window = 8
[federation]
organizations = 3
partition = "dirichlet"
rows = 0
test_rows = 6
[privacy]
epsilon = 4.0
[rounds]
rounds = 1
steps = 2
batch = 4
[provider]
transformer = "made/gt.safetensors"
controls = "made/controls.safetensors"
tuples = "made/tuples"
library = "made/library.safetensors"
shadow_rows = 8
shadow_sets = 2
pair_sets = 3
mixtures = 1
tuning_steps = 4
tuning_batch = 4
training_steps = 4
training_groups = 2
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    made = write_files(folder / "text")
    path = folder / "federation.toml"
    path.write_text(f'[pair]\ntiny = "{made.tiny}"\nllm = "{made.llm}"\n' + TABLES.format(data=made.data))
    return path


def test_options_win_over_the_file(project: Path, tmp_path: Path) -> None:
    options = ("--workers", 1, "--rank", 1, "--steps", 2, "--pair-sets", 1, "--out", tmp_path / "other")
    other = gradtf("curate", "--config", project, *options)
    assert other.exit_code == 0, other.stderr
    header = TupleStore.open(tmp_path / "other").header
    assert (header["spec"]["rank"], header["config"]["plain"]["steps"], header["config"]["pair_sets"]) == (1, 2, 1)
    assert header["config"]["shadow_sets"] == 2


@pytest.mark.slow
def test_curate_and_train_are_the_halves_of_prepare(project: Path, tmp_path: Path) -> None:
    """All three read the project's file, and what is made already is not made again."""
    path = tmp_path / "federation.toml"
    path.write_text(project.read_text())
    work = ProviderWork.of(read_project(path))
    curated = gradtf("curate", "--config", path, "--workers", 1)
    assert curated.exit_code == 0, curated.stderr
    assert f"next: gradtf train --config {path}" in curated.stdout
    assert TupleStore.open(work.tuples).header["spec"] == work.curation.spec.to_json()
    trained = gradtf("train", "--config", path)
    assert trained.exit_code == 0, trained.stderr
    made = {one.name: one.read_bytes() for one in (tmp_path / "made").glob("*.safetensors")}
    assert sorted(made) == ["controls.safetensors", "gt.safetensors"]
    assert gradtf("prepare", "--config", path, "--yes").exit_code == 0
    for name, content in made.items():
        assert (tmp_path / "made" / name).read_bytes() == content


def test_what_no_project_has_and_what_is_missing_is_refused(project: Path) -> None:
    refused = gradtf("curate", "--config", project, "--rules", 3, "--tasks", "a")
    assert refused.exit_code == 2
    for name in ("rules", "tasks"):
        assert f"--{name}: only without --config" in refused.stderr
    assert "--out: required without --config" in gradtf("curate").stderr
    missing = gradtf("train")
    assert missing.exit_code == 2
    assert "--tuples: required without --config" in missing.stderr
    assert "--out: required without --config" in missing.stderr
    elsewhere = gradtf("curate", "--config", project, "--device", "cuda:7")
    assert elsewhere.exit_code == 2
    assert "cuda:7" in elsewhere.stderr


def test_the_whole_way_from_a_file_to_a_federation(project: Path, tmp_path: Path) -> None:
    before = gradtf("simulate", "--config", project)
    assert before.exit_code == 2
    assert "gradtf prepare makes them; --no-transformer" in before.stderr
    refused = gradtf("prepare", "--config", project)
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr

    result = gradtf("prepare", "--config", project, "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    judged = document["judgement"]
    assert judged["organizations"] == ["animals", "numbers", "mixture of all"]
    ways = {OURS, "library (nearest task, tuned as long)", "nearest shadow update", "ridge", "mean update"}
    assert set(judged["nats_per_character"]) == ways | {BASE, TUNED, "TinyLM base", "TinyLM tuned"}
    assert json.loads(Path(document["report"]).read_text())["verdict"] == judged["verdict"]
    assert "shards are left" in result.stderr

    report = tmp_path / "run"
    ran = gradtf("simulate", "--config", project, "--out", report, "--json")
    assert ran.exit_code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["metric"] == "loss"
    assert set(found["gain_recovered"]) == {"llm_generated", "mean_update", "nearest_update", "ridge", "task_library"}
    assert all(set(one["holds"]) <= {"animals", "numbers"} for one in found["organizations"])
    assert [sum(one["holds"].values()) for one in found["organizations"]] == [o["rows"] for o in found["organizations"]]
    assert (report / "holdings.png").read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "other.toml"
    other.write_text(
        project.read_text()
        .replace("window = 8", "window = 8\npublic = 0.4")
        .replace("made/", f"{project.parent}/made/")
    )
    refused = gradtf("simulate", "--config", other)
    assert refused.exit_code == 2
    assert "prepared on other public rows than [task] names now" in refused.stderr
    assert gradtf("check", "--config", other).exit_code == 2
    again = gradtf("simulate", "--config", project, "--out", tmp_path / "plain", "--no-transformer")
    assert again.exit_code == 0, again.stderr
    assert "Who holds which rows" in again.stdout
    assert "without DP" in again.stdout


def test_the_project_names_the_size_of_the_grad_transformer(project: Path, tmp_path: Path) -> None:
    assert ProviderWork.of(read_project(project)).training.backbone == Backbone()
    (tmp_path / "t5").mkdir()
    (tmp_path / "small").mkdir()  # a folder that is called like a size
    path = tmp_path / "federation.toml"
    found = []
    for name in ("small", "t5", "google/flan-t5-large"):
        path.write_text(project.read_text() + f'backbone = "{name}"\n')
        found.append(ProviderWork.of(read_project(path)).training.backbone)
    assert found == [SIZES["small"], *(Backbone(pretrained=n) for n in (str(tmp_path / "t5"), "google/flan-t5-large"))]


def test_the_llm_s_last_steps_are_kept_where_the_project_asks_for_them(project: Path, tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(project.read_text() + "last_k = 3\n")
    work = ProviderWork.of(read_project(path))
    one = replace(work, curation=replace(work.curation, last_k=1))
    more = estimate(work).disk_bytes - estimate(one).disk_bytes
    kept = curate(work.curation, work.tuples)
    lasts = [shard.tensors["llm_last"] for shard in kept.shards() if "llm" in shard.tensors]
    assert {len(last) for last in lasts} == {3}
    assert sum(last.nbytes for last in lasts) == more
    path.write_text(project.read_text() + "last_k = 5\n")
    assert "last_k must be at most tuning_steps (4), not 5" in refused(path)


def test_a_killed_preparation_goes_on(project: Path, tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(project.read_text().replace("training_steps = 4", "training_steps = 3"))
    work = ProviderWork.of(read_project(path))
    told: list[str] = []

    def kill(what: str, done: int, total: int) -> None:
        told.append(what)
        if done == 2 and what.startswith("curate"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(work, kill)
    kept = TupleStore.open(work.tuples).names
    assert len(kept) >= 1
    left = estimate(work)
    assert left.shards_left == left.shards - len(kept)
    made = prepare(work, lambda what, done, total: told.append(what))
    first = made.transformer.sha256
    assert prepare(work, lambda *_: None).transformer.sha256 == first
    path.write_text(path.read_text().replace("training_groups = 2", "training_groups = 3"))
    with pytest.raises(ConfigError, match="prepared with other settings"):
        prepare(ProviderWork.of(read_project(path)), lambda *_: None)


@pytest.mark.parametrize(
    ("ours", "rival", "said"),
    [(0.9, 0.5, "good enough"), (0.9, 0.95, "no better than a simpler way"), (0.4, 0.1, "not good enough")],
)
def test_the_verdict_compares_with_the_best_rival(ours: float, rival: float, said: str) -> None:
    losses = {BASE: (2.0,), TUNED: (1.0,), OURS: (2.0 - ours,), "ridge": (2.0 - rival,), "mean update": (2.0,)}
    judgement = Judgement(("a",), losses, 8, 8)
    assert said in judgement.verdict
    assert f"ridge reaches {rival:.2f}" in judgement.verdict
    assert "no verdict" in Judgement(("a",), losses | {TUNED: (2.1,)}, 8, 8).verdict


def refused(path: Path) -> str:
    result = gradtf("prepare", "--config", path, "--yes")
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    return "\n".join(line for line in result.stderr.splitlines() if not line.startswith("measuring"))


CHANGES = {
    "too few public rows for a shadow set": ("shadow_rows = 8", "shadow_rows = 800", "a shadow set has 800"),
    "too few public rows to judge on": (
        "window = 8",
        "window = 40",
        "public rows to judge on, at least 8 are required",
    ),
    "a model that is missing": ("/tiny", "/nothing", "no such folder"),
    "rows that are missing": ("/animals", "/plants", "plants: no such file or folder"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_stops_the_work_is_told_first_and_can_be_mended(what: str, project: Path, tmp_path: Path) -> None:
    """Nothing is noted of settings that could not be used: with the next ones the work begins."""
    good, bad, said = CHANGES[what]
    path = tmp_path / "federation.toml"
    path.write_text(project.read_text().replace(good, bad, 1))
    assert said in refused(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["federation.toml"]
    path.write_text(project.read_text())
    check_work(ProviderWork.of(read_project(path)))


def test_a_store_of_another_pair_or_of_other_rows_is_not_gone_on_with(project: Path, tmp_path: Path) -> None:
    own = write_files(tmp_path / "own")
    path = tmp_path / "federation.toml"
    path.write_text(f'[pair]\ntiny = "{own.tiny}"\nllm = "{own.llm}"\n' + TABLES.format(data=own.data))
    work = ProviderWork.of(read_project(path))
    curate(replace(work.curation, shadow_sets=1), work.tuples)
    assert f"tuple store {work.tuples}: made with other settings, rows or models (config); remove it" in refused(path)
    shutil.rmtree(work.tuples)
    curate(work.curation, work.tuples)
    check_work(work)
    model = own.llm / "generation_config.json"
    model.write_text(model.read_text() + "\n")
    assert "rows or models (llm); remove it" in refused(path)


def test_a_full_disk_keeps_what_is_finished(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place that writes, one after the other; the work then goes on to the same end."""
    path = tmp_path / "federation.toml"
    path.write_text(project.read_text())
    work = ProviderWork.of(read_project(path))
    written, stops_at = 0, 2

    def full(of: Callable[..., object]) -> Callable[..., object]:
        def write(*arguments: object, **options: object) -> object:
            nonlocal written
            written += 1
            if written == stops_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return of(*arguments, **options)

        return write

    monkeypatch.setattr(files, "write_synced", full(files.write_synced))
    monkeypatch.setattr(store, "save_file", full(store.save_file))
    said: list[str] = []
    made = None
    while made is None:
        written = 0
        try:
            made = prepare(work, lambda *_: None)
        except ConfigError as error:
            said.append(str(error))
        assert not list(tmp_path.rglob("*.new"))
        stops_at += 3
    assert len(said) >= 3
    assert all("can't be written" in text and "No space left on device" in text for text in said), said
    assert not any("\n" in text for text in said), said
    assert made.report.is_file()
