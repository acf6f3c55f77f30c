"""Demonstrations that are started by hand or by a page of the documentation."""
