"""The Flower app: two lines that import the installed apps, as a bundle carries no weights.

Flower looks for an assignment to ``app`` in the syntax tree: an import alone is not found.
"""
