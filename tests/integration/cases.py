"""Requests whose answers must not depend on how many processes serve the model."""

from __future__ import annotations

from typing import Any

PROMPTS = [
    "The list type in Python",
    "To open a file, call",
    "A generator is a function that",
    "class Stack:\n    def push(self, item):",
    "Return the number of",
    "The asyncio module provides",
    "Dictionaries are",
    "If the argument is omitted,",
    "An exception is raised when",
    "import os\n\nfor name in os.listdir(",
    "Changed in version 3.8:",
    "The decorator @property",
    "Sets support mathematical operations like",
    "Note that strings are",
    "The following example shows",
    "Threads and processes",
]

LONG_PROMPT = " ".join(f"{i}. {prompt}" for i, prompt in enumerate(PROMPTS * 3))
"""A few hundred tokens: several chunks of a chunked prefill, and several blocks of the prefix cache."""

_GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
_SEEDED = {"temperature": 0.9, "seed": 1234, "max_tokens": 24, "ignore_eos": True}

RESUMED_IN_PIECES = {"prompt": PROMPTS[11], **_SEEDED, "max_tokens": 400, "ignore_eos": True}
"""Prompt and output together are more than a step computes: resumed late, they are computed in pieces."""

CASES: dict[str, dict[str, Any]] = {
    **{f"greedy {i}": {"prompt": prompt, **_GREEDY} for i, prompt in enumerate(PROMPTS)},
    "seeded": {"prompt": PROMPTS[0], **_SEEDED},
    "seeded top-k top-p": {"prompt": PROMPTS[1], **_SEEDED, "top_k": 20, "top_p": 0.9},
    "seeded n=3": {"prompt": PROMPTS[2], **_SEEDED, "n": 3},
    "logprobs": {"prompt": PROMPTS[3], **_GREEDY, "logprobs": 3},
    "prompt logprobs": {"prompt": PROMPTS[4], **_GREEDY, "prompt_logprobs": 2},
    "penalties": {
        "prompt": PROMPTS[5],
        **_GREEDY,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.6,
        "repetition_penalty": 1.2,
    },
    "stop string": {"prompt": PROMPTS[6], "temperature": 0, "max_tokens": 60, "stop": ["the", "."]},
    "min tokens": {"prompt": PROMPTS[7], "temperature": 0, "max_tokens": 30, "min_tokens": 20},
    "logit bias": {"prompt": PROMPTS[8], **_GREEDY, "logit_bias": {"300": 8.0, "301": -100}},
    "allowed tokens": {"prompt": PROMPTS[8], **_GREEDY, "allowed_token_ids": [50, 51, 52, 300, 301]},
    "bad words": {"prompt": PROMPTS[8], **_GREEDY, "bad_words": ["the", "a"]},
    "words of a client's own": {"prompt": PROMPTS[9], **_GREEDY, "vllm_xargs": {"a": "x"}},
    "top-k beyond the vocabulary": {"prompt": PROMPTS[10], **_SEEDED, "top_k": 1 << 31},
    "seeded min-p": {"prompt": PROMPTS[12], **_SEEDED, "min_p": 0.05},
    "JSON schema": {
        "prompt": PROMPTS[13],
        "temperature": 0,
        "max_tokens": 40,
        "structured_outputs": {"json": {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}}},
    },
    "regex": {
        "prompt": PROMPTS[9],
        "temperature": 0,
        "max_tokens": 24,
        "structured_outputs": {"regex": "[a-z]{3} [0-9]{2} (yes|no)"},
    },
    "choice": {
        "prompt": PROMPTS[10],
        "temperature": 0,
        "max_tokens": 8,
        "structured_outputs": {"choice": ["alpha", "beta", "gamma"]},
    },
    "long prompt": {"prompt": LONG_PROMPT, **_GREEDY},
    "long prompt again": {"prompt": LONG_PROMPT, **_GREEDY},
    "token ids": {"prompt": [5, 100, 200, 300, 400], **_GREEDY},
}
