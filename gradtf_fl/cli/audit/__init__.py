"""``gradtf audit``: report, verify, move and rotate ledgers; plan; audit the trainer."""
