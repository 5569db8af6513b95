"""Serve a steered model: many users, different vectors, one batch."""
