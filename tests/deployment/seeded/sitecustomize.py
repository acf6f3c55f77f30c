"""On PYTHONPATH this makes the node's programs serve a folder with a [simulation] table, which they refuse otherwise."""

import os

if os.environ.get("GRADTF_TEST_SEEDED"):
    from clients.organization import load_organization

    load_organization.__kwdefaults__["simulated"] = True
