"""Break everything, seeded: ``python -m tests.chaos --seeds 100``."""
