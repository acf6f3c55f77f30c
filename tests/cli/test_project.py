"""One file for a project: init writes it, every verb reads it, and all that is wrong with it is said at once."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from gradtf_fl.config import SharingOut, SimulationConfig, TaskSection, plan_values, read_project
from gradtf_fl.config.project import KEYS, TABLES
from gradtf_fl.errors import ConfigError
from gradtf_fl.tasks import federation_data
from tests.cli.conftest import gradtf
from tests.curation.text_pair import CONTEXT, TextFiles, write_files


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    return write_files(tmp_path_factory.mktemp("text"))


def problems(path: Path, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_project(path, options)
    return [problem.replace(str(path), "FILE") for problem in caught.value.problems]


def test_every_setting_has_one_place_in_the_file() -> None:
    inside = {"task", "compute", "provider"}
    flat = (
        {place[0] for place in KEYS if len(place) == 1}
        | inside
        | {"engine", "workers", "ray_cpus", "ray_gpus", "ray_address", "drop", "out"}
    )
    assert flat == set(SimulationConfig.model_fields)
    assert len(KEYS) == sum(map(len, TABLES.values()))


def test_the_file_is_read_from_its_own_folder_and_options_win(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    path = tmp_path / "federation.toml"
    path.write_text(
        '[pair]\ntiny = "./t"\nllm = "owner/name"\nalpha = 8\ntargets = ["a", "b"]\n[task]\nsource = "rows"\n'
        '[privacy]\nepsilon = 2.0\n[provider]\ntransformer = "made/gt"\ncontrols = "embedded"\n'
    )
    settings = read_project(path, {"epsilon": 1.0})
    assert (settings.tiny, settings.llm) == (str(tmp_path / "t"), "owner/name")
    assert (settings.transformer, settings.controls) == (str(tmp_path / "made/gt"), "embedded")
    assert settings.provider.tuples == tmp_path / "tuples"
    assert settings.task.source == (str(tmp_path / "rows"),)
    assert (settings.lora_alpha, settings.targets, settings.epsilon) == (8, "a,b", 1.0)
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    path.write_text('[task]\nsource = "link"\n')
    assert read_project(path).task.source == (str(tmp_path / "link"),)  # as it is called, not where it leads
    plan = plan_values(settings)
    assert (plan["epsilon"], plan["lora_alpha"]) == (1.0, 8)
    assert not {"organizations", "seed", "rows", "task"} & set(plan)


def test_everything_wrong_is_said_at_once_by_file_and_key_or_option(tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(
        '[pair]\nrank = "a"\nspeed = 1\n[bar]\nx = 1\n[task]\nformat = "q"\nanswer_pattern = "(a)(b)"\n'
        "[federation]\norganizations = 5\n"
    )
    found = problems(path, epsilon=-1.0, **{"task.rules": "z"})
    named = [problem.split(": ")[1] for problem in found if "FILE" in problem]
    assert sorted(named) == sorted(["pair.speed", "bar", "pair.rank", "task.format", "task.answer_pattern"])
    assert sorted(problem.split(": ")[0] for problem in found if "FILE" not in problem) == ["--epsilon", "--rules"]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ('[federation]\npartition = "sizes"\nsizes = [1.0, 2.0]\n', "sizes has 2 shares, there are 5 organizations"),
        ('[federation]\npartition = "natural"\n', "partition 'natural' needs by"),
        ('[task]\nformat = "columns"\nprompt = "{a}"\n', "columns need two templates; answer is missing"),
        ('[task]\nsource = ["house-rules", "rows"]\n', "house-rules can't be one of several sources"),
        ("[federation]\nrows = 0\n", "of house-rules must be at least 1"),
        ('[federation]\nweight_rule = "examples"\n[secure_sum]\nnoise_multiplier = 1.0\n', "weight_rule 'uniform'"),
    ],
)
def test_keys_that_do_not_fit_together(tables: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    path.write_text(tables)
    (problem,) = problems(path)
    assert problem.startswith("FILE")
    assert said in problem


def test_init_writes_the_embedded_project(tmp_path: Path) -> None:
    result = gradtf("init", tmp_path / "p")
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "p" / "federation.toml"
    assert read_project(path).model_copy(update={"provider": SimulationConfig().provider}) == SimulationConfig()
    lines = path.read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert len(keys) > 12
    assert all(lines[number - 1].startswith("# ") for number in keys)  # a comment above every key
    assert gradtf("check", "--config", path).exit_code == 0
    again = gradtf("init", tmp_path / "p")
    assert again.exit_code == 2
    assert str(tmp_path / "p") in again.stderr


def test_init_looks_at_the_rows(text: TextFiles, tmp_path: Path) -> None:
    pair = ("--tiny", text.tiny, "--llm", text.llm)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"cat {i} ", "answer": "dog"}) + "\n" for i in range(60)))
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"prompt": f"cat {i} " * 30, "answer": "dog"}) + "\n" for i in range(60)))
    chats = tmp_path / "chats.jsonl"
    turns = [[{"role": "user", "content": f"cat {i}"}, {"role": "assistant", "content": "dog"}] for i in range(60)]
    chats.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))

    def made(name: str, *sources: Path) -> dict[str, dict[str, object]]:
        arguments = [part for source in sources for part in ("--task", source)]
        result = gradtf("init", tmp_path / name, *pair, *arguments)
        assert result.exit_code == 0, result.stderr
        return tomllib.loads((tmp_path / name / "federation.toml").read_text())

    short = made("a", rows)["task"]
    assert (short["format"], short["max_new_tokens"]) == ("auto", CONTEXT // 4)
    assert made("b", long)["task"]["format"] == "text"
    assert made("c", chats)["task"]["format"] == "messages"
    both = made("d", text.data / "animals", text.data / "numbers")
    assert (both["task"]["format"], both["federation"]["partition"]) == ("text", "dirichlet")


def test_init_fits_shadow_sets_to_few_rows_and_takes_templates(text: TextFiles, tmp_path: Path) -> None:
    letters = tmp_path / "letters.csv"
    letters.write_text("animal,note\n" + "".join(f"dog,cat {i}\n" for i in range(60)))
    arguments = ("--tiny", text.tiny, "--llm", text.llm, "--task", letters)
    refused = gradtf("init", tmp_path / "p", *arguments, "--prompt", "{note}")
    assert (refused.exit_code, "--answer: missing" in refused.stderr) == (2, True)
    result = gradtf("init", tmp_path / "p", *arguments, "--prompt", r"{note}\n", "--answer", "{animal}")
    assert result.exit_code == 0, result.stderr
    path = tmp_path / "p" / "federation.toml"
    made = tomllib.loads(path.read_text())
    assert [made["task"][key] for key in ("format", "prompt", "answer")] == ["columns", "{note}\n", "{animal}"]
    assert made["provider"]["shadow_rows"] == 13
    assert "letters: 27 rows are public, so a shadow set has 13 of them" in result.stdout


def test_init_says_that_a_tokenizer_has_no_chat_template(text: TextFiles, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    turns = [[{"role": "user", "content": f"cat {i}"}, {"role": "assistant", "content": "dog"}] for i in range(60)]
    chats.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    result = gradtf("init", tmp_path / "p", "--tiny", text.tiny, "--llm", text.llm, "--task", chats)
    assert f"{Path(text.llm).name}: no chat template: as plain text" in result.stdout


def test_init_refuses_what_can_not_be_and_leaves_nothing(text: TextFiles, tmp_path: Path) -> None:
    result = gradtf("init", tmp_path / "p", "--tiny", "/nowhere/tiny", "--llm", text.llm, "--task", tmp_path / "none")
    assert result.exit_code == 2
    assert "/nowhere/tiny" in result.stderr
    assert not (tmp_path / "p").exists()


def test_check_names_every_obstacle(text: TextFiles, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"cat {i} ", "answer": "dog"}) + "\n" for i in range(200)))
    path = tmp_path / "federation.toml"
    path.write_text(
        f'[pair]\ntiny = "{text.tiny}"\nllm = "{text.llm}"\n[task]\nsource = "rows.jsonl"\n'
        "[federation]\norganizations = 4\nrows = 0\n[rounds]\nbatch = 30\n"
        '[provider]\ntransformer = "gt"\ncontrols = "c"\n'
    )
    result = gradtf("check", "--config", path, "--json")
    assert result.exit_code == 2
    found = {one["what"]: one for one in json.loads(result.stdout)["findings"]}
    assert found["TinyLM"]["level"] == found["LLM"]["level"] == "ok"
    assert found["federation"]["level"] == "fail"
    assert "an organization needs 30" in found["federation"]["found"]
    assert found["Grad-Transformer"]["level"] == "warn"
    path.write_text(path.read_text().replace("batch = 30", "batch = 4"))
    few = gradtf("check", "--config", path, "--json")
    assert few.exit_code == 2
    found = {one["what"]: one for one in json.loads(few.stdout)["findings"]}
    assert "90 public rows, a shadow set has 256" in found["shadow sets"]["found"]
    path.write_text(path.read_text() + "shadow_rows = 8\n")
    long = gradtf("check", "--config", path, "--json")
    assert long.exit_code == 2
    found = {one["what"]: one for one in json.loads(long.stdout)["findings"]}
    assert found["answers of tiny to rows"]["found"] == (
        f"128 new tokens leave no room for a prompt in a context of {CONTEXT}"
    )
    path.write_text(path.read_text().replace("[federation]", "max_new_tokens = 8\n[federation]"))
    assert gradtf("check", "--config", path).exit_code == 0
    (tmp_path / "bad.jsonl").write_text(rows.read_text() + '{"prompt": "cat"}\nno\n' * 4)
    path.write_text(path.read_text().replace("rows.jsonl", "bad.jsonl"))
    bad = gradtf("check", "--config", path, "--json")
    found = {one["what"]: one for one in json.loads(bad.stdout)["findings"]}
    said = found["rows of bad"]["found"].splitlines()
    assert [line.partition(": ")[0].rpartition(", ")[2] for line in said[:4]] == [f"line {n}" for n in range(201, 205)]
    assert said[4:] == ["and 4 more", "task bad: 8 of 208 rows are malformed, at most 0.00% may be"]


def test_evaluate_and_what_if_read_the_project(text: TextFiles, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"cat {i} ", "answer": "dog"}) + "\n" for i in range(60)))
    path = tmp_path / "federation.toml"
    path.write_text(
        f'[pair]\ntiny = "{text.tiny}"\nllm = "{text.llm}"\n[task]\nsource = "rows.jsonl"\nmax_new_tokens = 4\n'
        "[privacy]\nepsilon = 3.0\n[rounds]\nrounds = 2\nsteps = 5\nbatch = 4\n"
    )
    result = gradtf("evaluate", "--config", path, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["model"] == str(text.llm)
    assert document["sources"]["rows"]["rows"] == 6  # a fifth of the private half
    assert document["sources"]["rows"]["metric"] == "exact_match"
    assert gradtf("evaluate", "--task", rows).exit_code == 2
    found = json.loads(gradtf("audit", "what-if", "--config", path, "--rows", 64, "--rounds", 4, "--json").stdout)
    assert {key: found["plan"][key] for key in ("epsilon", "rounds", "steps", "batch", "rows")} == {
        "epsilon": 3.0,
        "rounds": 4,
        "steps": 5,
        "batch": 4,
        "rows": 64,
    }
    assert found["accuracy"] is None
    missing = gradtf("audit", "what-if", "--epsilon", 1)
    assert missing.exit_code == 2
    assert "--rounds, --batch, --rows: required, or a project's file" in missing.stderr


def test_an_organization_takes_pair_form_and_compute_from_the_project(text: TextFiles, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"q": "cat ", "a": "dog"}) + "\n")
    path = tmp_path / "federation.toml"
    path.write_text(
        f'[pair]\ntiny = "{text.tiny}"\nllm = "{text.llm}"\n[compute]\ndevice = "auto"\n'
        '[task]\nsource = "rows.jsonl"\nformat = "columns"\nprompt = "{q}"\nanswer = "{a}"\nmax_tokens = 40\n'
        '[provider]\ntransformer = "gt"\ncontrols = "c"\n'
    )
    result = gradtf("org", "init", tmp_path / "ward", "--data", rows, "--budget", 4, "--config", path)
    assert result.exit_code == 0, result.stderr
    made = tomllib.loads((tmp_path / "ward" / "organization.toml").read_text())
    assert made["models"] == {"tiny": str(text.tiny), "llm": str(text.llm)}
    assert {key: made["data"][key] for key in ("format", "prompt", "answer", "max_tokens", "end")} == {
        "format": "columns",
        "prompt": "{q}",
        "answer": "{a}",
        "max_tokens": 40,
        "end": True,
    }
    assert made["compute"]["device"] == "auto"


def test_another_seed_shares_out_anew_and_leaves_public_rows_public(text: TextFiles) -> None:
    task = TaskSection(source=(str(text.data / "animals"), str(text.data / "numbers")), format="text", window=8)
    public = set()
    held = []
    for seed in (0, 1):
        data = federation_data(task, SharingOut(partition="dirichlet"), 3, 4, seed)
        public.add(tuple(data.public))
        held.append([one.train for one in data.organizations])
    assert len(public) == 1
    assert held[0] != held[1]
    again = federation_data(task.model_copy(update={"split_seed": 1}), SharingOut(), 3, 4, 0)
    assert tuple(again.public) not in public
