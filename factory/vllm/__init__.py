"""Steering inside stock vLLM: a KV connector, and the request field ``steering`` at its server."""
