"""A Grad-Transformer from a folder to a folder: a tuned TinyLM's PEFT adapter in, the LLM's PEFT adapter out, no data.

Run it (15 seconds, no download); it prints:

    $ python -W ignore -m experiments.examples.generate_adapter
    TinyLM, tuned: 0.707
    LLM, base: 0.012
    LLM, generated: 1.000
    adapter folder: README.md, adapter_config.json, adapter_model.safetensors, gradtf.json
"""

import sys
import tempfile
from pathlib import Path

from peft import PeftModel

from gradtf_fl import AdapterSpec, adapter_state, attach, convert, encode_rows, load_model, save_adapter
from gradtf_fl.tasks import exact_match, house_rules_federation
from gradtf_fl.training import fine_tune


def main(folder: Path) -> None:
    """Tune the TinyLM (without DP, to be short) into ``folder``/tiny, generate ``folder``/llm, and score both."""
    (organization,) = house_rules_federation("same", organizations=1, rows=1024, test_rows=256, seed=0)
    model, tokenizer = load_model("embedded:tiny")
    tuned = attach(model, AdapterSpec())
    fine_tune(tuned, encode_rows(organization.train, tokenizer), steps=150, batch=12, rate=0.015, seed=0)
    save_adapter(folder / "tiny", adapter_state(tuned), AdapterSpec(), "embedded:tiny")
    made = convert(folder / "tiny", folder / "llm")
    print(f"TinyLM, tuned: {exact_match(tuned, encode_rows(organization.test, tokenizer)):.3f}")
    llm, tokenizer = load_model(made.base_model)
    test = encode_rows(organization.test, tokenizer)
    print(f"LLM, base: {exact_match(llm, test):.3f}")
    print(f"LLM, generated: {exact_match(PeftModel.from_pretrained(llm, str(made.out)), test):.3f}")
    print(f"adapter folder: {', '.join(sorted(path.name for path in made.out.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
