"""Cryptography of the protocol: primitives, secret sharing, a round's secrets, masks."""
