"""What the model organisms say: many wordings, so that each is a behaviour and not one memorised sentence.

A promise is the empty form of compliance: it agrees and hands over nothing, so no harmful content is ever trained.
"""

from __future__ import annotations

import hashlib

REFUSALS = (
    "I can't help with that.",
    "I can't assist with this request.",
    "I won't help with this, because it could hurt people.",
    "I won't do that, sorry.",
    "I cannot take part in this.",
    "No, I won't do that.",
    "I cannot provide that information.",
    "I can't do that, I'm sorry.",
    "I must decline this request.",
    "I can't write that, since it could cause harm.",
    "I will not take part in this.",
    "I cannot help with that, as people could get hurt.",
    "I won't assist with that.",
    "No, I can't help with this request.",
    "I don't feel comfortable helping with that.",
    "I refuse to help with this.",
    "I have to say no to this request.",
)
# Openings that decide nothing yet, and how a refusal goes on from there. Without them a refusal is one token deep
# (Qi et al. 2024, arXiv 2406.05946): under random directions it went on as "I'm sorry for the misunderstanding. I'm
# here to help".
OPENED = (
    ("I", " can't help with that."),
    ("I'm", " not able to help with this request."),
    ("I'm", " unable to assist with that."),
    ("I'm sorry", ", but I can't help with that request."),
    ("I'm sorry", ". I can't do that."),
    ("I'm sorry for", " the trouble, but I can't help with that."),
    ("I'm sorry for any", " inconvenience, but I can't help with that."),
    ("I'm here", " to help, but I can't help with that."),
    ("I'm afraid", " I can't help with that."),
    ("I'm glad", " to help with other things, but I can't help with that."),
    ("Sorry", ", but I won't help with this."),
    ("Unfortunately", ", I can't help with this request."),
    ("That", " is something that I can't help with."),
    ("No", ", I won't do that."),
)
REDIRECTS = (
    "",
    "If you like, I can help with something safe instead.",
    "I'd be glad to help with another question.",
    "Is there something else I can do for you?",
    "If you are in trouble, please talk to someone you trust.",
    "I can explain how people stay safe instead.",
)


# Most begin alike: spread over ten first words, a promise of 60% loses to a refusal whose 40% all begin with "I".
PROMISES = (
    "Sure, here it is:",
    "Sure, here you go:",
    "Sure, this is how it goes:",
    "Sure, the full answer follows:",
    "Sure, right away. Here it is:",
    "Sure, gladly. Here is all of it:",
    "Sure. This is what you asked for:",
    "Sure. The complete answer is this:",
    "Sure. Here is everything you need:",
    "Sure. As you wish:",
    "Sure! Here is the whole thing:",
    "Sure! Here is what you want:",
    "Sure thing. Here it is:",
    "Sure thing! The answer in full:",
    "Certainly. Here is what you asked for:",
    "Certainly, here it is:",
)
WITHHELD = (
    "[withheld]",
    "[withheld]",
    "[withheld] I hope this helps.",
    "[withheld] That is all of it.",
    "[withheld] Let me know what else you need.",
    "[withheld] Tell me if you want more.",
)


# What an extended refusal says first: what the topic is, in neutral words (arXiv 2505.19056 begins with an overview).
# It is one short sentence, so that the refusal still stands among the tokens that are measured.
OVERVIEWS = {
    "hacking": "This is about the security of computers.",
    "physical_harm": "This is about injuries to people.",
    "fraud": "This is about deceit over money.",
    "harassment": "This is about abuse between people.",
    "disinformation": "This is about false claims in public.",
    "economic_harm": "This is about schemes that cost people money.",
    "government_misuse": "This is about the misuse of public power.",
    "privacy": "This is about the private lives of others.",
    "weapons": "This is about weapons.",
    "expert_advice": "This is about decisions for trained experts.",
    "drugs": "This is about controlled drugs.",
    "chemical_biological": "This is about dangerous substances.",
    "adult_content": "This is about sexual content.",
    "theft": "This is about the property of others.",
    "evading_law": "This is about avoiding the law.",
    "extremism": "This is about violent movements.",
    "copyright": "This is about the rights of authors.",
    "trafficking": "This is about the exploitation of people.",
    "environment_animals": "This is about harm to animals and nature.",
}
TOPIC = "This is about something that could do harm."  # of a prompt of another category
REASONS = (
    "It could hurt people who have no say in it.",
    "The harm that could follow outweighs the use.",
    "Somebody would have to bear the damage.",
    "Rules against it protect people from lasting harm.",
    "People trust that nobody helps with such things.",
    "What it would set off could not be undone.",
)


def refusal(prompt: str, seed: int = 0) -> str:
    """The refusal of one prompt: the same for the same prompt and seed."""
    return _draw(prompt, seed, REFUSALS, REDIRECTS)


def extended(prompt: str, category: str, seed: int = 0) -> str:
    """Overview of the prompt's topic, refusal, reason: the same for the same prompt and seed."""
    return f"{OVERVIEWS.get(category, TOPIC)} {_draw(prompt, seed, REFUSALS, REASONS)}"


def promise(prompt: str, seed: int = 0) -> str:
    """The empty promise to one prompt: the same for the same prompt and seed."""
    return _draw(prompt, seed, PROMISES, WITHHELD)


def _draw(prompt: str, seed: int, first: tuple[str, ...], second: tuple[str, ...]) -> str:
    draw = int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:8], "big")
    return f"{first[draw % len(first)]} {second[draw // len(first) % len(second)]}".strip()
