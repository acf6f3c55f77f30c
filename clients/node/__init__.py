"""The organization's node: set-up, checks, the processes that take messages, and the worker that holds models."""
