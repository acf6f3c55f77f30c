"""Small real tokenizers: one token a byte, with the special tokens and chat templates of known families."""

from __future__ import annotations

from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (  # no system turn, white space before the end
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
THINK = (  # earlier answers lose their reasoning, the last one gets an empty one
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if "
    "'</think>' in m.content else '' %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BARE = (  # nothing closes a turn
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
ASKS_OTHERWISE = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
FORGETS = CHATML.replace("m.content +", "('' if m.role == 'assistant' else m.content) +")


def byte_tokenizer(template: str | None = None, *, bos: bool = True, adds_eos: bool = False, eos: bool = True) -> Any:
    """One token for each byte; ``<s>`` in front where ``bos``, ``</s>`` behind where ``adds_eos``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    single = ["<s>"] * bos + ["$A"] + ["</s>"] * adds_eos
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(single), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"unk_token": "<unk>", "bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer
