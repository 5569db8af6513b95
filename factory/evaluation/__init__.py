"""Whether a vector steers: a sweep, controls and a verdict, all on held-out questions."""
