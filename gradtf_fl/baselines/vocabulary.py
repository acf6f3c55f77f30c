"""Do two models read and write the same tokens? Proxy tuning and soft labels add or compare logits by token id."""

from __future__ import annotations

from gradtf_fl.baselines.interface import Pair
from gradtf_fl.errors import ConfigError
from gradtf_fl.training import StackedAdapters


def logits_width(side: StackedAdapters) -> int:
    """Columns of the model's logits. Some models pad them past the last token id (Qwen2.5: 3B and 7B differ)."""
    return int(side.model.get_output_embeddings().weight.shape[0])


def shared_width(pair: Pair) -> int:
    """Columns that belong to a token: largest token id + 1."""
    return int(max(pair.llm.tokenizer.get_vocab().values())) + 1


def vocabulary_problems(pair: Pair) -> list[str]:
    """Why logits of the two models can't be added column by column; empty when they can.

    The tokenizers' token -> id maps must be equal, and both logits must have a column for each id. Columns past the
    last id are padding and may differ in number.
    """
    tiny, llm = pair.tiny.tokenizer.get_vocab(), pair.llm.tokenizer.get_vocab()
    problems = []
    if tiny != llm:
        differing = sorted(token for token in tiny.keys() | llm.keys() if tiny.get(token) != llm.get(token))
        example = differing[0]
        problems.append(
            f"vocabularies differ: the TinyLM has {len(tiny)} tokens, the LLM {len(llm)}, {len(differing)} tokens have "
            f"another id or none on one side, e.g. {example!r} ({tiny.get(example)} and {llm.get(example)})"
        )
    for name, side, vocabulary in (("TinyLM", pair.tiny, tiny), ("LLM", pair.llm, llm)):
        if logits_width(side) <= max(vocabulary.values()):
            problems.append(
                f"the {name}'s logits have {logits_width(side)} columns, its tokenizer's largest id is "
                f"{max(vocabulary.values())}"
            )
    return problems


def require_one_vocabulary(pair: Pair, method: str) -> None:
    """ConfigError, with every problem, when ``method`` can't add the two models' logits."""
    problems = vocabulary_problems(pair)
    if problems:
        raise ConfigError([f"{method} needs one vocabulary: {problem}" for problem in problems])
