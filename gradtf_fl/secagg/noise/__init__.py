"""Distributed noise: rotation, rounding and Skellam samples that organizations add before masking."""
