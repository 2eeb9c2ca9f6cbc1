"""Reads nothing, writes nothing: how many tokens a text has, about, and how much text so many hold.

No tokenizer is asked: each model has its own, and none is at hand for all of them. Code and prose
have three to four bytes a token, so a guess at three errs on the high side, as limits want it.
"""

BYTES_PER_TOKEN = 3


def estimate(*texts: str) -> int:
    """The tokens of these texts together, rather too many than too few."""
    return -(-sum(_size(text) for text in texts) // BYTES_PER_TOKEN)


def room(tokens: int) -> int:
    """The bytes of a text that is estimated at no more than so many tokens."""
    return tokens * BYTES_PER_TOKEN


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
