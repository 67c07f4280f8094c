"""Experiments on when a hierarchy can be found, and on what the post left open."""
