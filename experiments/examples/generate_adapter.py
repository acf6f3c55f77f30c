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

from gradtf_fl.adapters import AdaptedModel, adapter_state, model_folder, save_adapter, update_vector
from gradtf_fl.tasks import encode_rows, exact_match, house_rules_federation
from gradtf_fl.training import fine_tune
from gradtf_fl.transformer import GradTransformer, embedded_checkpoint


def main(folder: Path) -> None:
    """Tune the TinyLM, generate the LLM's adapter into ``folder``, and score both."""
    (organization,) = house_rules_federation("same", organizations=1, rows=1024, test_rows=256, seed=0)
    transformer = GradTransformer.load(embedded_checkpoint())
    source, target = transformer.source, transformer.target
    tiny, llm = AdaptedModel.load(source.model, source.spec), AdaptedModel.load(target.model, target.spec)

    tuned = tiny.attach()
    rows, test = encode_rows(organization.train, tiny.tokenizer), encode_rows(organization.test, llm.tokenizer)
    fine_tune(tuned, rows, steps=150, batch=12, rate=0.015, seed=0)
    update = update_vector(source.layout, adapter_state(tuned), tiny.initial)  # [blocks, block_dim] of the TinyLM

    generated = transformer.generate(update)  # [blocks, block_dim] of the LLM
    save_adapter(folder, llm.state_at(generated), target.spec, model_folder(target.model))

    print(f"update vectors: TinyLM {list(update.shape)}, LLM {list(generated.shape)}")
    print(f"accuracy of the TinyLM, tuned: {exact_match(tuned, test):.3f}")
    print(f"accuracy of the LLM, base: {exact_match(llm.model, test):.3f}")
    loaded = PeftModel.from_pretrained(llm.model, str(folder))
    print(f"accuracy of the LLM, generated: {exact_match(loaded, test):.3f}")
    print(f"adapter folder: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "llm_adapter")
