"""The same pipeline with a queue between the steps. File name = queue name."""
