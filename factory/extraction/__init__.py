"""What the target model reads for each pair, and the differences of its keys and values."""
