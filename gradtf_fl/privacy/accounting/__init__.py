"""Accountants: what a history of noisy steps costs, and the noise that a budget requires."""
