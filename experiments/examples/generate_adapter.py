"""From a TinyLM adapter to an LLM adapter: the Grad-Transformer sees what training changed, and no data.

The TinyLM is tuned without DP here, to keep the example short. The result is a plain PEFT folder, and is loaded as
anybody would load it: with transformers and peft.

Run it (about 15 seconds, no download):

    python -W ignore -m experiments.examples.generate_adapter [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from peft import PeftModel

from gradtf_fl import AdapterSpec, adapter_state, attach, convert, encode_rows, load_model, save_adapter
from gradtf_fl.tasks import exact_match, house_rules_federation
from gradtf_fl.training import fine_tune


def main(folder: Path) -> None:
    """Tune the TinyLM into ``folder``/tiny, generate the LLM's adapter into ``folder``/llm, and score both."""
    (organization,) = house_rules_federation("same", organizations=1, rows=1024, test_rows=256, seed=0)
    spec = AdapterSpec()
    model, tokenizer = load_model("embedded:tiny")
    rows, test = encode_rows(organization.train, tokenizer), encode_rows(organization.test, tokenizer)
    tuned = attach(model, spec)
    fine_tune(tuned, rows, steps=150, batch=12, rate=0.015, seed=0)
    save_adapter(folder / "tiny", adapter_state(tuned), spec, "embedded:tiny")

    made = convert(folder / "tiny", folder / "llm")

    print(f"accuracy of the TinyLM, tuned: {exact_match(tuned, test):.3f}")
    llm, tokenizer = load_model(made.base_model)
    test = encode_rows(organization.test, tokenizer)
    print(f"accuracy of the LLM, base: {exact_match(llm, test):.3f}")
    loaded = PeftModel.from_pretrained(llm, str(made.out))
    print(f"accuracy of the LLM, generated: {exact_match(loaded, test):.3f}")
    print(f"adapter folder: {', '.join(sorted(path.name for path in made.out.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
