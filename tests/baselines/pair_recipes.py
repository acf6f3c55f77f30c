"""Short recipes for the embedded pair: enough to learn something, quick enough for tests."""

from gradtf_fl.training.stacked import PlainRecipe

TINY_RECIPE = PlainRecipe(steps=80, batch=16, rate=2e-2)
LLM_RECIPE = PlainRecipe(steps=20, batch=8)
