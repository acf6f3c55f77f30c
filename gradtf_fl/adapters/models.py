"""A model's name -> folder -> loaded model: the embedded pair, a local folder, or a hub id (where a hub is)."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gradtf_fl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from gradtf_fl.adapters.device import Place

T = TypeVar("T")
ASSETS = Path(__file__).parents[1] / "assets"
LONGER_WARNING = "sequence-length-is-longer-than-the-specified-maximum"
"""What transformers calls its warning of a text that a model can't read whole."""
Signature = tuple[tuple[str, int, int, int], ...]
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
MODEL_FILES = (
    *WEIGHT_FILES,
    "config.json",
    "generation_config.json",
    "*.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.*",
)
"""Patterns of the files in a model's folder that decide what it computes, reads and writes."""
EMBEDDED = {"embedded:tiny": ASSETS / "house-rules-tiny", "embedded:llm": ASSETS / "house-rules-llm"}


def model_folder(name: str, what: str = "model") -> str:
    """What `from_pretrained` is given for ``name``: a folder's absolute path, or a hub id as it stands.

    A name with a path separator prefix (``/``, ``./``, ``~``) or an existing folder is local. ConfigError when
    a local folder is missing or holds no config.json.
    """
    if name.startswith("embedded:"):
        if name not in EMBEDDED:
            raise ConfigError(f"model {name!r}: the embedded models are {', '.join(sorted(EMBEDDED))}")
        return str(EMBEDDED[name])
    folder = Path(name).expanduser()
    looks_local = name.startswith(("/", ".", "~")) or name.count("/") != 1 or folder.exists()
    if not looks_local:
        return name
    if not folder.is_dir():
        raise ConfigError(f"{what} {name!r}: there is no such folder")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{what} {name!r}: the folder holds no config.json")
    return str(folder.resolve())


def load_model(name: str, place: Place | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model in eval mode, tokenizer). ConfigError, with the cause in one line, when it can't be had.

    ``place`` says where and how exactly its weights are held; None: on the CPU, in float32.

    >>> from gradtf_fl import load_model
    >>> model, tokenizer = load_model("embedded:tiny")
    >>> model.training, tokenizer.padding_side
    (False, 'right')
    """

    def weights(folder: str) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        from gradtf_fl.adapters.device import offloaded

        options = {"dtype": "float32"} if place is None else place.loading()
        if place is not None and place.is_quantized:  # it warns of its float16 in every product
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **options)
        if problems := offloaded(model):
            raise ConfigError(problems)
        return model.eval()

    return _from_folder(name, weights), load_tokenizer(name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, as `load_model` gives it. ConfigError as there.

    It pads on the right, with the end-of-sequence token where it has none of its own for it, and none without either:
    `tasks.encode_rows` needs no pad token.
    """

    def loaded(folder: str) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    tokenizer: PreTrainedTokenizerBase = _from_folder(name, loaded)
    tokenizer.padding_side = "right"
    tokenizer.deprecation_warnings[LONGER_WARNING] = True  # rows are counted and cut by whoever encodes them
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_shapes(name: str) -> PreTrainedModel:
    """The model called ``name`` as its config says it, its parameters without values. ConfigError as `load_model`."""

    def shapes(folder: str) -> PreTrainedModel:
        from transformers import AutoConfig

        from gradtf_fl.adapters.targets import without_weights

        model: PreTrainedModel = without_weights(AutoConfig.from_pretrained(folder))
        return model

    return _from_folder(name, shapes)


def load_encoder(name: str) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """What rows are encoded with for the model called ``name``: its config and tokenizer. ConfigError as above."""

    def config(folder: str) -> PretrainedConfig:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder)

    return _from_folder(name, config), load_tokenizer(name)


def _from_folder(name: str, load: Callable[[str], T]) -> T:
    """What ``load`` makes of a model's folder or hub id; ConfigError, with the cause in one line, when it can't."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = model_folder(name)
    try:
        return load(folder)
    except Exception as error:  # the library raises many kinds: all mean that this model can't be loaded
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"model {name!r} can't be loaded: {cause}") from error


def kept_model(name: str, place: Place | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_model`, from a copy that this process keeps in memory while the model's files stay as they are.

    A spread model is loaded anew: a second one might not fit beside it.
    """
    if place is not None and place.is_spread:
        return load_model(name, place)
    if snapshot(name) is None:
        load_model(name, place)  # from the hub, into its cache
    model, tokenizer = _kept(name, place, _signature(name))
    return copy.deepcopy(model), tokenizer


@lru_cache(maxsize=1)
def _kept(name: str, place: Place | None, signature: Signature) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_model(name, place)


def model_hash(name: str) -> str:
    """SHA-256 (hex) over name and content of every file that makes a model what it is: weights of any format,
    configuration, generation settings, tokenizer and chat template.

    Raises:
        ConfigError: a hub id that is not in this machine's cache, or a folder without weights.
    """
    return _hash_of(name, _signature(name))


def weights_hash(name: str) -> str:
    """What `model_hash` was up to version 0.1: config.json and ``*.safetensors`` alone. Files of then carry it."""
    digest = hashlib.sha256()
    for path in _model_files(name):
        if path.name == "config.json" or path.suffix == ".safetensors":
            digest.update(path.name.encode() + b"\0")
            _add_content(digest, path)
    return digest.hexdigest()


@lru_cache(maxsize=16)
def _hash_of(name: str, signature: Signature) -> str:
    digest = hashlib.sha256(b"gradtf/model/v2\0")
    for path in _model_files(name):
        named = path.name.encode()
        digest.update(len(named).to_bytes(8, "big") + named + path.stat().st_size.to_bytes(8, "big"))
        _add_content(digest, path)
    return digest.hexdigest()


def _add_content(digest: Any, path: Path) -> None:
    """A part at a time: weights may be larger than memory."""
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)


def _model_files(name: str) -> list[Path]:
    """In name order; all that `MODEL_FILES` names. ConfigError where they can't be told or hold no weights."""
    folder = snapshot(name)
    if folder is None:
        raise ConfigError(
            f"model {name!r}: is not in this machine's cache of the hub, so its files can't be compared: download it "
            f"(hf download {name}), or name a folder"
        )
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    if not any(path.match(pattern) for path in files for pattern in WEIGHT_FILES):
        raise ConfigError(f"model {name!r}: {folder} holds no weights ({', '.join(WEIGHT_FILES)})")
    return files


def snapshot(name: str) -> Path | None:
    """The local folder of a model's files; None for a hub id that is not cached. ConfigError as `model_folder`."""
    folder = Path(model_folder(name))
    if folder.is_absolute():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the library has several for this
        return None


def _signature(name: str) -> Signature:
    """What tells that files were replaced: name, size, inode and time of last change of each."""
    stats = [(path.name, path.stat()) for path in _model_files(name)]
    return tuple((name, stat.st_size, stat.st_ino, stat.st_mtime_ns) for name, stat in stats)
