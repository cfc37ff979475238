"""Starting, watching and describing a pipeline of stages; nothing here imports vLLM."""
