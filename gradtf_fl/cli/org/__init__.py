"""``gradtf org``: an organization's keys, checks, node and adapters."""
