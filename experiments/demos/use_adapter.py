"""``python -m experiments.demos.use_adapter ADAPTER...``: how an organization uses its adapter, without gradtf-fl.

Loads each PEFT folder with plain transformers and peft and answers a few prompts; fails when one cannot be loaded or
two that should be the same answer differently.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

BEGINNING, TEXTS, CONTINUED = 40, 4, 24
"""Of rows of text: characters that are given, how many texts, and tokens that follow."""


def answers(adapter: Path, prompts: list[str], length: int) -> list[str]:
    """Greedy answers of ``length`` tokens."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=length, do_sample=False, pad_token_id=0)
        found.append(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :]))
    return found


def main() -> None:
    """Print how many answers are right; exit 1 when adapters disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--rows", type=Path, required=True, help="JSONL of prompt and answer, or of text")
    parser.add_argument("--limit", type=int, default=64)
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.rows.read_text().splitlines()[: given.limit]]
    seen: list[list[str]] = []
    for adapter in given.adapters:
        if "text" in rows[0]:
            seen.append(answers(adapter, [row["text"][:BEGINNING] for row in rows[:TEXTS]], CONTINUED))
            print(f"{adapter}: {rows[0]['text'][:BEGINNING]!r} goes on {seen[-1][0]!r}")
            continue
        seen.append(answers(adapter, [row["prompt"] for row in rows], 2))
        right = sum(answer.replace(" ", "") == row["answer"] for answer, row in zip(seen[-1], rows, strict=True))
        print(f"{adapter}: {right} of {len(rows)} answers right")
    if any(other != seen[0] for other in seen):
        sys.exit("the adapters differ")


if __name__ == "__main__":
    main()
