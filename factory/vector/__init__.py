"""The steering vector: the mean of differences, its statistics, its files, and steering with it."""
