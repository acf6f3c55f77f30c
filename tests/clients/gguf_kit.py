"""Base models as float32 GGUF files, and greedy tokens of llama.cpp and of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.adapters.gguf_export import ARCHITECTURES, interleaved

TOKENS = 32
CONTEXT = 256
NORMAL, CONTROL, BYTE = 1, 3, 6  # kinds of tokens in GGUF


def needs_llama_cpp() -> Any:
    """llama-cpp-python and gguf, or skip."""
    pytest.importorskip("gguf", reason='pip install "gradtf-fl[gguf]"')
    return pytest.importorskip("llama_cpp", reason='pip install "gradtf-fl[llama-cpp]": it is built from source')


def write_base(model: Any, tokenizer: Any, path: Path) -> None:
    """``model`` in float32, as llama.cpp's own converter lays it out, for the architectures that we export for."""
    import gguf

    config, architecture = model.config, ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    _write_tokens(writer, tokenizer, config.vocab_size)
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.detach().float().numpy()
        layer = name.split(".")[-2]
        if architecture.is_interleaved and layer in heads:
            values = interleaved(values.reshape(len(values), -1), heads[layer]).reshape(values.shape)
        stem, _, suffix = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokens(writer: Any, tokenizer: Any, size: int) -> None:
    """The vocabulary as a SentencePiece one. Tests ask by token ids, so only its size and its ids matter."""
    texts = [f"<spare {number}>" for number in range(size)]
    kinds = [NORMAL] * size
    for text, number in tokenizer.get_vocab().items():
        texts[number] = text
        kinds[number] = BYTE if len(text) == 6 and text.startswith("<0x") else NORMAL
    for number in tokenizer.all_special_ids:
        kinds[number] = CONTROL
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "unk"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)


def dequantized(source: Path, path: Path) -> None:
    """The GGUF file ``source`` with every tensor in float32 and the rest as it was."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, *inner = field.types
        writer.add_key_value(name, field.contents(), kind, sub_type=inner[-1] if inner else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(tuple(reversed(tensor.shape.tolist()))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp_tokens(base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The first `TOKENS` greedy tokens after each prompt by llama.cpp, its cache in float32."""
    import llama_cpp

    llama = llama_cpp.Llama(
        model_path=str(base),
        lora_path=None if adapter is None else str(adapter),
        n_ctx=CONTEXT,
        n_threads=1,
        n_threads_batch=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    found = []
    for prompt in prompts:
        llama.reset()
        tokens = llama.generate(list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0)
        found.append([int(next(tokens)) for _ in range(TOKENS)])
    llama.close()
    return found


def torch_tokens(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same by transformers. Ends of text count as any token."""
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens, asked, past = list[int](), list(prompt), None
            for _ in range(TOKENS):
                answer = model(input_ids=torch.tensor([asked]), past_key_values=past, use_cache=True)
                past, asked = answer.past_key_values, [int(answer.logits[0, -1].argmax())]
                tokens += asked
            found.append(tokens)
    return found
