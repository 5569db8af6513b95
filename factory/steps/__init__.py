"""One step per queue, from the store to the store: write, extract, reduce, evaluate."""
