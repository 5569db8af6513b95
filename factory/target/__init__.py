"""The frozen target model: loading it, its layers, and its KV cache."""
