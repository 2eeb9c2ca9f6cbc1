"""Reads text, writes it without secrets: what stands between the fleet and everything that is kept or said.

Every sink of text goes through one `Redactor`: the lines of a process's log with their tracebacks, the
stored copies of prompts and replies, what a task tells of itself on the logs, dead letters, the messages
of the command line. Secrets that the process holds are struck out wherever they stand, in every
spelling; those of others are known by their shape, and by what they are assigned to. What is sent to a
model, and the contents of files, are the user's own and never changed.
"""

import json
import math
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit

MARK = "[secret]"
SHORTEST = 8
"""Characters: what is shorter, or a plain word, would be struck out of ordinary text."""
_SURE = 16
"""Characters from which on a word of letters alone is taken for a secret that the process holds."""
_RANDOM_CHARS = 12
_RANDOM_BITS = 3.0
"""Shannon entropy of a value's characters, from which on it is taken for random."""

Redact = Callable[[str], str]
"""Text, without its secrets."""

_PLACEHOLDER = re.compile(r"[{$<%*\[]")
_WORD = re.compile(r"[a-z]?(?:[A-Z]?[a-z]{2,}+|[A-Z]{2,}+)+\d{0,3}|[A-Za-z]?\d{0,4}")


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one kind of secret is found."""

    needles: tuple[str, ...]
    """In lower case: it begins with one of them. They are looked for first, since most text holds none
    and no pattern can be searched for as fast."""
    pattern: re.Pattern[str]
    """With the groups `before`, which stays, and perhaps `value`."""
    is_secret: Callable[[str], bool] = lambda value: True


def _token(needles: str, pattern: str) -> _Rule:
    return _Rule(tuple(needles.split()), re.compile(rf"(?<![A-Za-z0-9_])(?P<before>)(?:{pattern})"))


_KEYWORDS = (
    *("password", "passwd", "passphrase", "pwd", "secret", "token", "credential"),
    *(
        f"{what}{dash}key"
        for what in ("api", "access", "secret", "private", "auth")
        for dash in ("", "_", "-")
    ),
)


@dataclass(frozen=True, slots=True)
class Redactor:
    """Strikes secrets out of text. Without any that are known it still finds those that look like one."""

    known: frozenset[str] = frozenset()
    """Secrets that this process holds."""
    _exact: tuple[str, ...] = field(init=False, compare=False)
    """All of their spellings."""
    _sure: tuple[str, ...] = field(init=False, compare=False)
    """Those of secrets that can be nothing else."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_exact", _ordered(self.known))
        object.__setattr__(self, "_sure", _ordered(filter(is_random, self.known)))

    def __repr__(self) -> str:
        return f"Redactor({len(self.known)} known)"

    def __call__(self, text: str) -> str:
        """The text, with a mark in the place of each secret."""
        for spelling in self._exact:
            text = text.replace(spelling, MARK)
        lowered = _lowered(text)
        if len(text) <= _SHORT and not _SUSPECT.search(lowered):
            return text
        for rule in _RULES:
            if spots := _spots(rule.needles, lowered):
                text = _struck(rule, text, spots)
                lowered = _lowered(text)
        return text

    def without_given_away(self, answer: str, asked: str) -> str:
        """An answer without those of our own secrets that were not in what was asked.

        A secret that could be a word (`not-needed`, as the key of a server that takes any) stays: the
        answer is worked with, and a mark in its place would be a mistake in it.
        """
        for spelling in self._sure:
            if spelling in answer and spelling not in asked:
                answer = answer.replace(spelling, MARK)
        return answer


def url_secrets(url: str) -> frozenset[str]:
    """What of a URL is secret: its password, and user and password as HTTP sends them."""
    try:
        parts = urlsplit(url)
        user, password = unquote(parts.username or ""), parts.password or ""
    except ValueError:
        return frozenset()
    if not password:
        return frozenset()
    plain = unquote(password)
    return frozenset({password, plain, b64encode(f"{user}:{plain}".encode()).decode()})


def _ordered(secrets: Iterable[str]) -> tuple[str, ...]:
    """The spellings of secrets, the longest first: one may be a part of another."""
    found = {spelling for secret in secrets for spelling in _spellings(secret)}
    return tuple(sorted(found, key=lambda spelling: (-len(spelling), spelling)))


def _spellings(secret: str) -> frozenset[str]:
    """A secret as it may be written; nothing where it is a plain word, or short."""
    if len(secret) < SHORTEST or (secret.isalpha() and len(secret) < _SURE):
        return frozenset()
    return frozenset(
        {
            secret,
            quote(secret, safe=""),
            json.dumps(secret)[1:-1],
            repr(secret)[1:-1],
            b64encode(secret.encode()).decode().rstrip("="),
        }
    )


def _lowered(text: str) -> str:
    """In lower case, with every character at its place (that of İ has two)."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if c.isascii() else c for c in text)


def _spots(needles: Sequence[str], lowered: str) -> list[int]:
    """Where the needles stand, in order."""
    found = []
    for needle in needles:
        at = lowered.find(needle)
        while at >= 0:
            found.append(at)
            at = lowered.find(needle, at + 1)
    return sorted(found)


def _struck(rule: _Rule, text: str, spots: Sequence[int]) -> str:
    """The text without what a rule finds at these spots."""
    parts, end = [], 0
    for spot in spots:
        found = rule.pattern.match(text, spot) if spot >= end else None
        if found is not None and rule.is_secret(found.groupdict().get("value") or ""):
            parts += [text[end:spot], found["before"], MARK]
            end = found.end()
    return "".join((*parts, text[end:])) if parts else text


def is_random(value: str) -> bool:
    """Whether a value looks made by chance: not a name, a path, a call or a placeholder."""
    if len(value) < _RANDOM_CHARS or _PLACEHOLDER.match(value) or MARK in value:
        return False
    if not any(map(str.isalpha, value)) or all(map(_WORD.fullmatch, re.split(r"[^A-Za-z0-9]+", value))):
        return False
    counts = Counter(value).values()
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
    return bits >= _RANDOM_BITS


def _is_real(value: str) -> bool:
    """Whether a password in a URL is none that stands for one."""
    return not _PLACEHOLDER.match(value)


_RULES = (
    _Rule(
        ("-----begin ",),
        re.compile(
            r"(?P<before>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)"
            r"(?:[\s\"'+,>|-]|\\[nr])*"
            r"(?:[A-Za-z-]+: [^\n\\]*(?:\s|\\[nr])+)*"
            r"[A-Za-z0-9+/=]{16,}"
            r"(?:(?!-----END)[A-Za-z0-9+/=\s\"'\\,>|-])*"
        ),
    ),
    _token("sk-", r"sk-(?=[\w-]*\d)[\w-]{20,}"),  # OpenAI, Anthropic, and those that follow them
    _token("ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{30,}"),
    _token("github_pat_ glpat-", r"github_pat_\w{30,}|glpat-[\w-]{20,}"),
    _token("akia asia", r"A(?:KIA|SIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _token("xox xapp-", r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}"),
    _token("aiza ya29.", r"AIza[\w-]{35}|ya29\.[\w-]{20,}"),
    _token("sk_live rk_live sk_test rk_test", r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    _token("sg.", r"SG\.[\w-]{16,}\.[\w-]{16,}"),
    _token("npm_ pypi- hf_", r"npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|hf_[A-Za-z0-9]{30,}"),
    _token("gsk_ xai-", r"(?:gsk_|xai-)[A-Za-z0-9]{40,}"),
    _token("eyj", r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*"),  # a JSON web token
    _Rule(
        ("://",),
        re.compile(r"(?P<before>://[^\s/?#@:'\"]{0,200}:)(?P<value>[^\s/?#@'\"]+)(?=@)"),
        _is_real,
    ),
    _Rule(
        ("bearer ", "authorization"),
        re.compile(
            r"(?P<before>(?:bearer|authorization\\?[\"']?\s*[:=]\s*\\?[\"']?(?:bearer|basic|token))\s+)"
            r"(?=[^\s\"']*[\d=])[\w.~+/=-]{12,}",
            re.IGNORECASE,
        ),
    ),
    _Rule(
        _KEYWORDS,
        re.compile(
            rf"(?P<before>(?:{'|'.join(_KEYWORDS)})"
            r"\\?[\"']?(?:\s*:\s*[\w\[\]|.]{1,40}(?=\s*=))?\s*(?:==?|:=?|=>)\s*[bru]?\\?[\"']?)"
            r"(?P<value>[^\s\"'`,;&<>()\[\]{}\\]{12,}+)(?!\()",
            re.IGNORECASE,
        ),
        is_random,
    ),
)
"""In this order; what one has struck out the next ones don't see."""

_SUSPECT = re.compile("|".join(re.escape(needle) for rule in _RULES for needle in rule.needles))
_SHORT = 200
"""Characters up to which one search for all needles is faster than one for each."""

BY_SHAPE = Redactor()
"""That of who holds no secrets."""
