"""Faster ways to the same numbers; each can be left out."""
