"""What an organization does with its delivered adapters: use, pin, verify, merge. Files of a real small federation."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from peft import PeftModel
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from clients.adapters.kept import current, follow, is_pinned, kept, newest, pin, unpin
from clients.delivery import receive_adapter
from clients.organization import load_organization
from gradtf_fl.adapters import AdapterSpec, load_adapter, model_hash, pack_adapter
from gradtf_fl.adapters.proof import UNUSED
from gradtf_fl.adapters.switches import COMPARED, HARMLESS, switches
from gradtf_fl.errors import ConfigError
from gradtf_fl.flower import Refused
from gradtf_fl.round_messages import AdapterDelivery
from gradtf_fl.safetensors_header import metadata_of
from gradtf_fl.secagg import Identity
from tests.cli.conftest import gradtf
from tests.clients.conftest import Kept

KILLED_IN_EXPORT = """
import os, signal, sys
from pathlib import Path
import clients.adapters.export as export
setattr(export, sys.argv[4], lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
export.export_merged(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), None)
"""


def run(folder: Path, *arguments: object) -> Result:
    return gradtf("org", "adapter", folder, *arguments)


def document(folder: Path, *arguments: object) -> dict[str, Any]:
    result = run(folder, *arguments, "--json")
    assert result.exit_code == 0, result.output
    read: dict[str, Any] = json.loads(result.stdout)
    return read


def provider_key(kept_by: Kept) -> str:
    return kept_by.kit.config(0).secagg.provider_key


def deliver(kept_by: Kept, run_id: str, round_number: int, scale: float = 2.0) -> None:
    """Another run's adapter arrives: round 3's, scaled."""
    provider = Identity.load(kept_by.kit.plan.out / "provider.key")
    source = kept_by.kit.folders[1] / "rounds" / "3" / "llm_adapter"
    state, spec, base = load_adapter(source)
    packed = pack_adapter({name: scale * tensor for name, tensor in state.items()}, spec, base, model_hash(base))
    message = AdapterDelivery(run_id, round_number, packed, b"", "", b"", b"update")
    message = replace(message, signature=provider.sign(message.signed_bytes))
    kept_by.kit.change(0, data=kept_by.kit.config(0).data.model_copy(update={"test": None}))
    assert receive_adapter(load_organization(kept_by.folder, simulated=True), message) == {"status": "stored"}


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=tokens).logits.float()
    return found


# Use


def test_the_link_follows_each_delivery(organization: Kept) -> None:
    link = organization.folder / "current_adapter"
    assert link.resolve() == organization.adapter(3).resolve()
    assert not Path(os.readlink(link)).is_absolute()
    assert [adapter.round for adapter in kept(organization.folder)] == [1, 2, 3]
    assert current(organization.folder) == newest(organization.folder)


def test_the_printed_snippet_loads_it_with_plain_peft(organization: Kept) -> None:
    told = document(organization.folder)
    assert (told["round"], told["in_use"], told["pinned"]) == (3, True, False)
    names: dict[str, Any] = {}
    exec(told["load"], names)
    base = AutoModelForCausalLM.from_pretrained(organization.kit.plan.llm)
    assert (logits(names["model"]) - logits(base)).abs().max() > 1e-4
    weights = organization.adapter(3) / "adapter_model.safetensors"
    digest = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout.split()[0]
    assert told["sha256"] == digest
    said = run(organization.folder).stdout
    assert told["load"] in said
    assert digest in said
    assert document(organization.folder, "--round", "1")["path"] == str(organization.adapter(1))


def test_rollback_pins_and_unpin_follows_again(organization: Kept) -> None:
    told = document(organization.folder, "--rollback", "1")
    assert (told["round"], told["pinned"], told["newest_round"]) == (1, True, 3)
    deliver(organization, "next run", 4)
    assert current(organization.folder).round == 1
    assert newest(organization.folder).round == 4
    assert document(organization.folder)["pinned"]
    assert document(organization.folder, "--latest")["round"] == 4
    assert document(organization.folder, "--unpin")["round"] == 4
    assert not is_pinned(organization.folder)
    deliver(organization, "next run", 5)
    assert current(organization.folder).round == 5


def test_a_pinned_adapter_outlives_a_run_that_counts_its_rounds_anew(organization: Kept) -> None:
    """Round 1 of a second run takes the place of round 1 of the first, which is pinned."""
    before = current_values(pin(organization.folder, 1).path)
    deliver(organization, "second run", 1)
    used = current(organization.folder)
    assert used.round == 1
    assert used.path != organization.adapter(1)
    assert all(torch.equal(value, before[name]) for name, value in current_values(used.path).items())
    used.verify(provider_key(organization))
    assert [(a.round, a.earlier) for a in kept(organization.folder)] == [(1, True), (2, False), (3, False), (1, False)]
    assert unpin(organization.folder).path == organization.adapter(1)  # the second run's is the newest
    assert len(kept(organization.folder)) == 3


def current_values(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(path / "adapter_model.safetensors"))


def test_a_second_runs_first_round_is_newer_than_the_first_runs_last(organization: Kept) -> None:
    deliver(organization, "second run", 1)
    assert current(organization.folder).path == organization.adapter(1)
    deliver(organization, "second run", 2)
    assert current(organization.folder).path == organization.adapter(2)
    assert current(organization.folder).problems(provider_key(organization)) == []
    assert not list(organization.folder.glob("rounds/*/earlier-*"))


def test_an_old_delivery_that_comes_again_does_not_roll_back(organization: Kept) -> None:
    deliver(organization, "next run", 4)
    deliver(organization, "next run", 5)
    deliver(organization, "next run", 4)
    assert current(organization.folder).round == 5
    statement = json.loads((organization.folder / "rounds" / "4" / "adapter.json").read_text())
    assert statement["delivery"] == 4


def test_an_old_runs_signed_adapter_does_not_become_current(organization: Kept) -> None:
    """A signature never ages: whoever kept an old run's delivery can send it for ever."""
    old, new = "20260101T000000Z-aa", "20260301T000000Z-bb"
    deliver(organization, old, 4)
    deliver(organization, new, 1)
    before = current(organization.folder)
    for run_id, round_number in ((old, 4), (old, 5), ("20260201T000000Z-cc", 9), ("0" * 32, 9)):
        with pytest.raises(Refused, match="is older than") as refused:
            deliver(organization, run_id, round_number)
        assert refused.value.code == "adapter"
        assert current(organization.folder) == newest(organization.folder) == before
    (organization.folder / "state.sqlite").unlink()  # as before runs were counted
    with pytest.raises(Refused, match="is older than"):
        deliver(organization, old, 5)
    deliver(organization, new, 2)
    deliver(organization, "20260301T000001Z-dd", 1)
    assert current(organization.folder).path == organization.adapter(1)


@pytest.mark.parametrize("change", ["nan", "infinity", "half", "extra", "rank"])
def test_an_adapter_that_nobody_could_use_is_refused(organization: Kept, change: str) -> None:
    source = organization.kit.folders[1] / "rounds" / "3" / "llm_adapter"
    state, spec, base = load_adapter(source)
    name = next(iter(state))
    if change == "extra":
        state["base_model.model.lm_head.lora_A.weight"] = state[name].clone()
    elif change == "rank":
        spec = replace(spec, rank=1_000_000)
    elif change != "half":
        state[name] = torch.full_like(state[name], float(change))
    packed = pack_adapter(state, spec, base, model_hash(base))
    if change == "half":  # as our own packing never writes it
        about = metadata_of(packed, "gradtf")
        packed = save({n: t.half() for n, t in state.items()}, {"gradtf": json.dumps(about)})
    message = AdapterDelivery("next run", 4, packed, b"", "", b"", b"update")
    provider = Identity.load(organization.kit.plan.out / "provider.key")
    with pytest.raises(Refused) as refused:
        receive_adapter(
            load_organization(organization.folder, simulated=True),
            replace(message, signature=provider.sign(message.signed_bytes)),
        )
    assert refused.value.code == "adapter"
    assert not organization.adapter(4).exists()


def test_a_delivery_that_was_cut_off_is_completed(organization: Kept) -> None:
    """Killed after the statement was written, or before the link was moved: the provider delivers again."""
    deliver(organization, "next run", 4)
    (organization.adapter(4) / "adapter_model.safetensors").unlink()
    (organization.folder / "newest_adapter").unlink()
    (organization.folder / "newest_adapter").symlink_to("rounds/3/llm_adapter")
    deliver(organization, "next run", 4)
    found = current(organization.folder)
    assert found.round == 4
    assert found.problems(provider_key(organization)) == []


def test_the_link_is_never_missing_while_it_changes(organization: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    link, seen = organization.folder / "current_adapter", []
    plain = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append(link.exists())
        plain(source, target)
        seen.append(link.exists())

    monkeypatch.setattr(os, "replace", watched)
    pin(organization.folder, 1)
    deliver(organization, "second run", 1)
    pin(organization.folder, 2)
    unpin(organization.folder)
    deliver(organization, "second run", 1, scale=3.0)
    assert len(seen) > 12
    assert all(seen)


def test_a_folder_from_before_links_and_statements(organization: Kept) -> None:
    for name in ("current_adapter", "newest_adapter"):
        (organization.folder / name).unlink()
    for path in organization.folder.glob("rounds/*/adapter.json"):
        path.unlink()
    assert current(organization.folder).round == 3
    result = run(organization.folder, "--verify")
    assert result.exit_code == 5
    assert "no adapter.json beside it" in result.stderr
    follow(organization.folder, 3)
    assert (organization.folder / "current_adapter").resolve() == organization.adapter(3).resolve()


# Verification


def test_the_statement_is_private_and_complete(organization: Kept) -> None:
    path = organization.folder / "rounds" / "2" / "adapter.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    statement = json.loads(path.read_text())
    assert {"run_id", "round", "llm_adapter_sha256", "update_sha256", "signature", "provider_key"} <= set(statement)
    record = json.loads((organization.kit.plan.out / "rounds" / "2" / "round.json").read_text())
    assert statement["llm_adapter_sha256"] == record["record"]["llm_adapter_sha256"]
    told = document(organization.folder, "--round", "2", "--verify")
    assert (told["verified"], told["provider_key"]) == (True, provider_key(organization))


def one_value(folder: Path) -> None:
    """The smallest change that floating point knows, in one value."""
    path = folder / "adapter_model.safetensors"
    state = dict(load_file(path))
    name = sorted(state)[0]
    flat = state[name].flatten().numpy()
    flat[0] = np.nextafter(flat[0], np.float32(9))
    state[name] = torch.from_numpy(flat).reshape(state[name].shape)
    save_file(state, path, {"format": "pt"})


def everything_but_the_signature(folder: Path) -> None:
    """A forger who makes all hashes fit again."""
    import hashlib

    from gradtf_fl.adapters import save_adapter
    from gradtf_fl.adapters.proof import packed_header

    state, spec, base = load_adapter(folder)
    state = {name: tensor + 1 for name, tensor in state.items()}
    save_adapter(folder, state, spec, base)
    packed = pack_adapter(state, spec, base, "")
    path = folder.parent / "adapter.json"
    statement = json.loads(path.read_text())
    statement |= {"llm_adapter_sha256": hashlib.sha256(packed).hexdigest(), "packed_header": packed_header(packed)}
    path.write_text(json.dumps(statement))


def signed_by_a_stranger(folder: Path) -> None:
    from gradtf_fl.round_messages import adapter_statement

    stranger, path = Identity.generate(), folder.parent / "adapter.json"
    s = json.loads(path.read_text())
    hashes = (bytes.fromhex(s[f"{name}_sha256"]) for name in ("llm_adapter", "update", "tiny"))
    signature = stranger.sign(adapter_statement(s["run_id"], s["round"], *hashes))
    path.write_text(json.dumps(s | {"signature": signature.hex(), "provider_key": stranger.public.hex()}))


def configured(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def another_round(folder: Path) -> None:
    for name in ("adapter.json", "llm_adapter/adapter_model.safetensors", "llm_adapter/gradtf.json"):
        (folder.parent / name).write_bytes((folder.parents[1] / "1" / name).read_bytes())


def truncated(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def renamed_tensor(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    state = dict(load_file(path))
    state[sorted(state)[0] + ".x"] = state.pop(sorted(state)[0])
    save_file(state, path, {"format": "pt"})


def transposed(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    state = dict(load_file(path))
    name = sorted(state)[0]
    state[name] = state[name].reshape(state[name].shape[::-1]).contiguous()
    save_file(state, path, {"format": "pt"})


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one value": (one_value, "values differ"),
    "all hashes": (everything_but_the_signature, "not signed by the provider's key"),
    "another signer": (signed_by_a_stranger, "delivered under another one"),
    "another scale": (configured(lora_alpha=400.0), "scale"),
    "a switch": (configured(use_rslora=True), "use_rslora"),
    "another initialisation": (configured(init_lora_weights="pissa"), "init_lora_weights"),
    "another base": (configured(base_model_name_or_path="/elsewhere"), "changed since it was stored"),
    "another round": (another_round, "is about round 1"),
    "cut off": (truncated, "damaged"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be read"),
    "another name": (renamed_tensor, "other tensors"),
    "another shape": (transposed, "another shape"),
    "a broken statement": (lambda folder: (folder.parent / "adapter.json").write_text("{"), "not JSON"),
    "an empty statement": (lambda folder: (folder.parent / "adapter.json").write_text("{}"), "adapter.json: signature"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_detected(organization: Kept, name: str, tmp_path: Path) -> None:
    change, words = CHANGES[name]
    change(organization.adapter(3))
    result = run(organization.folder, "--verify")
    assert result.exit_code == 5
    assert words in result.stderr
    assert "delivered again" in result.stderr
    result = run(organization.folder, "--verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["verified"]) == (5, False)
    assert run(organization.folder, "--export", "merged", "--out", tmp_path / "merged").exit_code == 5
    assert not (tmp_path / "merged").exists()
    rows = {row["round"]: row["verified"] for row in document(organization.folder, "--list")["adapters"]}
    assert rows == {1: True, 2: True, 3: False}
    shown = run(organization.folder, "--list")
    assert shown.exit_code == 0
    assert re.search(r"3 .*NO", shown.stdout)


def test_an_earlier_provider_key_verifies_what_it_signed(organization: Kept) -> None:
    old = provider_key(organization)
    new = Identity.generate().public.hex()
    limits = organization.kit.config(0).secagg.model_copy(update={"provider_key": new})
    organization.kit.change(0, secagg=limits)
    assert run(organization.folder, "--verify").exit_code == 5
    assert document(organization.folder, "--verify", "--provider-key", old)["verified"]


def test_every_entry_that_peft_writes_is_judged(organization: Kept) -> None:
    """A newer PEFT may have new entries: they count as switches until they are known to change nothing."""
    config = json.loads((organization.adapter(3) / "adapter_config.json").read_text())
    assert switches(config) == []
    assert not any(config[name] for name in UNUSED)
    for name in set(config) - COMPARED - HARMLESS:
        assert switches({**config, name: "another"}) == [f"{name} = 'another'"]
    assert switches({**config, "a_new_one": True}) == ["a_new_one = True"]


def test_adapters_of_other_kinds_are_verified_by_their_own_state(organization: Kept) -> None:
    """LoRA-XS: R is signed, what PEFT loads is B R."""
    from gradtf_fl.adapters import initial_state, save_adapter
    from gradtf_fl.adapters.models import load_model

    spec = AdapterSpec(kind="lora-xs")
    state = initial_state(load_model(organization.kit.plan.llm)[0], spec)
    state = {name: t + 0.1 if "lora_R" in name else t for name, t in state.items()}
    provider = Identity.load(organization.kit.plan.out / "provider.key")
    packed = pack_adapter(state, spec, "llm", "")
    message = AdapterDelivery("xs", 7, packed, b"", "", b"", b"")
    message = replace(message, signature=provider.sign(message.signed_bytes))
    from clients.adapters.statements import statement_of, write_statement

    place = organization.folder / "rounds" / "7"
    write_statement(place, statement_of(message, provider.public, 9))
    save_adapter(place / "llm_adapter", state, spec, organization.kit.plan.llm)
    assert document(organization.folder, "--round", "7", "--verify")["verified"]
    one_value_more = current_values(place / "llm_adapter")
    name = next(n for n in one_value_more if "lora_B" in n)
    one_value_more[name][0, 0] += 0.1
    save_file(one_value_more, place / "llm_adapter" / "adapter_model.safetensors", {"format": "pt"})
    result = run(organization.folder, "--round", "7", "--verify")
    assert result.exit_code == 5
    assert "is not the plain LoRA form" in result.stderr


# Export


@pytest.fixture
def peft_logits(organization: Kept) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(organization.kit.plan.llm)
    return logits(PeftModel.from_pretrained(base, organization.adapter(3)))


@pytest.mark.parametrize(("dtype", "bound"), [(None, 1e-5), ("float32", 1e-5), ("bfloat16", 0.02), ("float16", 0.004)])
def test_a_merged_model_answers_as_the_peft_model(
    organization: Kept, tmp_path: Path, peft_logits: torch.Tensor, dtype: str | None, bound: float
) -> None:
    out = tmp_path / "merged"
    out.mkdir()  # an empty one is fine
    result = run(
        organization.folder, "--export", "merged", "--out", out, "--json", *(["--dtype", dtype] if dtype else [])
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["export"]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == getattr(torch, dtype or "float32")
    assert told["dtype"] == (dtype or "float32")
    scale = peft_logits.abs().max()
    assert (logits(model.float()) - peft_logits).abs().max() < bound * scale
    assert told["max_logit_error"] < told["adapter_effect"]
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(out.glob("adapter*"))
    card = (out / "README.md").read_text()
    assert "library_name: transformers\n" in card
    assert f"merged in, in {dtype or 'float32'}." in card
    assert AutoTokenizer.from_pretrained(out)("37?58=")["input_ids"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".merged")] == []


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # what the test is about
def test_an_adapter_on_tied_embeddings_is_merged_into_the_input_alone(organization: Kept, tmp_path: Path) -> None:
    from clients.adapters.export import export_merged
    from gradtf_fl.adapters import initial_state, save_adapter
    from gradtf_fl.adapters.models import load_model

    spec = AdapterSpec(targets=("embed_tokens", "q_proj"))
    base, _ = load_model(organization.kit.plan.llm)
    assert base.config.tie_word_embeddings
    state = {name: tensor + 0.1 for name, tensor in initial_state(base, spec).items()}
    save_adapter(tmp_path / "adapter", state, spec, organization.kit.plan.llm)
    made = export_merged(tmp_path / "adapter", organization.kit.plan.llm, tmp_path / "merged", None)
    assert made.adapter_effect > 100 * made.max_error
    wanted = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("step", ["_refuse_other_answers", "_move"])
def test_a_killed_export_leaves_nothing_of_its_name(organization: Kept, tmp_path: Path, step: str) -> None:
    out = tmp_path / "place" / "merged"
    out.parent.mkdir()
    arguments = [str(organization.adapter(3)), organization.kit.plan.llm, str(out), step]
    program = [sys.executable, "-c", KILLED_IN_EXPORT, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1  # the half of it, under another name
    document(organization.folder, "--export", "merged", "--out", out)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_a_merged_model_with_other_answers_is_not_kept(
    organization: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT merges wrongly: the comparison finds it."""
    from peft.tuners.lora import LoraModel

    plain = LoraModel.merge_and_unload

    def wrongly(self: Any, *arguments: Any, **extra: Any) -> Any:
        merged = plain(self, *arguments, **extra)
        with torch.no_grad():
            next(p for n, p in merged.named_parameters() if "q_proj" in n).mul_(1.5)
        return merged

    monkeypatch.setattr(LoraModel, "merge_and_unload", wrongly)
    result = run(organization.folder, "--export", "merged", "--out", tmp_path / "merged")
    assert result.exit_code == 5
    assert "nothing was written" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["org-1"]


def test_an_occupied_place_is_refused(organization: Kept, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for place in (tmp_path / "full", tmp_path / "full" / "file", tmp_path / "missing" / "merged"):
        assert run(organization.folder, "--export", "merged", "--out", place).exit_code == 2


# The command line


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (["--latest", "--round", "1"], 1),
        (["--rollback", "1", "--verify"], 1),
        (["--list", "--unpin", "--dtype", "float16", "--provider-key", "AB"], 4),
        (["--dtype", "float16"], 1),
        (["--out", "elsewhere"], 1),
        (["--export", "gguf", "--dtype", "float16", "--out", "/missing/adapter.gguf"], 2),
        (["--provider-key", "a" * 64], 1),
        (["--rollback", "9"], 1),
    ],
)
def test_usage_errors_are_told_at_once(organization: Kept, arguments: list[str], problems: int) -> None:
    result = run(organization.folder, *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, problems), result.stderr
    assert not is_pinned(organization.folder)


def test_a_folder_without_adapters(tmp_path: Path) -> None:
    assert "no adapter was delivered yet" in run(tmp_path).stderr
    assert run(tmp_path / "missing").exit_code == 2
    with pytest.raises(ConfigError):
        unpin(tmp_path)


def test_a_link_that_leads_nowhere_is_told(organization: Kept) -> None:
    (organization.folder / "current_adapter").unlink()
    (organization.folder / "current_adapter").symlink_to("/tmp")
    result = run(organization.folder)
    assert result.exit_code == 2
    assert "--rollback ROUND or --unpin" in result.stderr
    assert document(organization.folder, "--unpin")["round"] == 3


def test_listing_needs_no_torch(organization: Kept) -> None:
    code = (
        "import sys\nfrom gradtf_fl.cli.org.adapter import adapter\n"
        f"for more in ([], ['--list'], ['--verify'], ['--rollback', '1'], ['--unpin']):\n"
        f"    adapter.main([{str(organization.folder)!r}, '--json', *more], standalone_mode=False)\n"
        "print(sorted({'torch', 'flwr', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.splitlines()[-1] == "[]"
