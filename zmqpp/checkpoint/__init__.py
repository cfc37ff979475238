"""Model folders as files: what is in them, which stage needs which tensor, one folder per stage. No torch, no vLLM."""
