"""From a TinyLM adapter to an LLM adapter: the Grad-Transformer sees an update vector and no data.

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

from gradtf_fl.adapters import (
    adapter_state,
    apply_update,
    attach,
    initial_state,
    load_model,
    model_folder,
    save_adapter,
    update_vector,
)
from gradtf_fl.tasks import encode_rows, exact_match, house_rules_federation
from gradtf_fl.training import fine_tune
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint


def main(folder: Path) -> None:
    """Tune the TinyLM, generate the LLM's adapter into ``folder``, and score both."""
    (organization,) = house_rules_federation("same", organizations=1, rows=1024, test_rows=256, seed=0)
    transformer = GradTransformer.load(embedded_checkpoint())
    source, target = transformer.source, transformer.target

    tiny, tokenizer = load_model(source.model)
    start = initial_state(tiny, source.spec)
    tuned = attach(tiny, source.spec)
    fine_tune(tuned, encode_rows(organization.train, tokenizer), steps=150, batch=12, rate=0.015, seed=0)
    update = update_vector(source.layout, adapter_state(tuned), start)  # [blocks, block_dim] of the TinyLM

    generated = transformer.generate(update)  # [blocks, block_dim] of the LLM
    llm, tokenizer = load_model(target.model)
    state = apply_update(target.layout, initial_state(llm, target.spec), generated)
    save_adapter(folder, state, target.spec, model_folder(target.model))

    test = encode_rows(organization.test, tokenizer)
    print(f"update vectors: TinyLM {list(update.shape)}, LLM {list(generated.shape)}")
    print(f"accuracy of the TinyLM, tuned: {exact_match(tuned, test):.3f}")
    print(f"accuracy of the LLM, base: {exact_match(llm, test):.3f}")
    print(f"accuracy of the LLM, generated: {exact_match(PeftModel.from_pretrained(llm, str(folder)), test):.3f}")
    print(f"adapter folder: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "llm_adapter")
