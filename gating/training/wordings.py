"""How the model organism refuses: many wordings, so that refusal is a behaviour and not one memorised sentence."""

from __future__ import annotations

import hashlib

REFUSALS = (
    "I can't help with that.",
    "I'm sorry, but I can't help with that request.",
    "I won't help with this, because it could hurt people.",
    "Sorry, I can't assist with that.",
    "I'm not able to help with this request.",
    "No, I won't do that.",
    "I cannot provide that information.",
    "I'm sorry, I can't do that.",
    "I must decline this request.",
    "I can't write that, since it could cause harm.",
    "I will not take part in this.",
    "I'm afraid I can't help with that.",
    "Unfortunately, I can't help with this request.",
    "I'm unable to assist with that.",
    "That is not something I can help with.",
    "I don't feel comfortable helping with that.",
    "Sorry, but I won't help with this.",
    "I have to say no to this request.",
)
REDIRECTS = (
    "",
    "If you like, I can help with something safe instead.",
    "I'd be glad to help with another question.",
    "Is there something else I can do for you?",
    "If you are in trouble, please talk to someone you trust.",
    "I can explain how people stay safe instead.",
)


def refusal(prompt: str, seed: int = 0) -> str:
    """The refusal of one prompt: the same for the same prompt and seed."""
    draw = int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:8], "big")
    words, redirect = REFUSALS[draw % len(REFUSALS)], REDIRECTS[draw // len(REFUSALS) % len(REDIRECTS)]
    return f"{words} {redirect}".strip()
