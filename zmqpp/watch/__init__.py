"""Watching a pipeline: what stages report, the status made of it, metrics, traces. Neither torch nor vLLM here."""
