"""The small real federation of tests/flower."""

from tests.flower.conftest import generator, make_kit, pair

__all__ = ["generator", "make_kit", "pair"]
