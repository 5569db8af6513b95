"""A run: what is frozen when it is planned, and what of it is done."""
