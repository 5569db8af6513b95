"""Before a run starts: what it will do, what it will cost, and what is refused."""
