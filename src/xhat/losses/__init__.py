"""Losses: what a term measures."""
