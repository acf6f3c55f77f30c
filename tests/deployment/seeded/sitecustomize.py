"""On PYTHONPATH this makes a node serve a folder with a [simulation] table, which it refuses otherwise."""

import os

if os.environ.get("GRADTF_TEST_SEEDED"):
    from clients.organization import load_organization

    load_organization.__kwdefaults__["simulated"] = True
