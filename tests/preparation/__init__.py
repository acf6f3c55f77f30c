"""Tests of the provider's work."""
