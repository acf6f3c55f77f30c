"""The organization's privacy ledger: signed, chained, charged before training."""
