"""Learned vectors: the numbers of a steering vector found by gradient descent, with the model frozen."""
