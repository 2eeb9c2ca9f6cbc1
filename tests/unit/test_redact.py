"""Secrets are struck out of text; ordinary code stays as it is."""

import logging
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.orchestrator.logs import Discreet
from codeconvoy.workers.redact import BY_SHAPE, MARK, Redactor, url_secrets

HEX = "d41d8cd98f00b204e9800998ecf8427e"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx1\nq83/Zb+Q==\n-----END RSA PRIVATE KEY-----"
TOKENS = (
    "sk-proj-" + HEX,
    "sk-ant-api03-" + HEX + "_-" + HEX,
    "ghp_" + "aB3" * 12,
    "github_pat_" + "aB3" * 12,
    "AKIA" + "Q7" * 8,
    "xoxb-" + "12345-67890-abcdef",
    "AIza" + "x7" * 17 + "x",
    "glpat-" + "x7-" * 8,
    "hf_" + "x7" * 17,
    "sk_" + "live_" + "x7" * 10,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc_-def",
)
KNOWN = "canary/pass+word&1"


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_known_by_its_shape(token: str) -> None:
    for text in ("{}", "a {} b", '"{}"', "key={}\n", "https://{}@github.com/x", "({},)", '\\"{}\\"'):
        assert BY_SHAPE(text.format(token)) == text.format(MARK)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (KEY, f"-----BEGIN RSA PRIVATE KEY-----{MARK}-----END RSA PRIVATE KEY-----"),
        (KEY.replace("\n", "\\n"), f"-----BEGIN RSA PRIVATE KEY-----{MARK}-----END RSA PRIVATE KEY-----"),
        ("redis://:hunter2@h:6379/0", f"redis://:{MARK}@h:6379/0"),
        ("https://me:pa55@h/x?y=1 and so on", f"https://me:{MARK}@h/x?y=1 and so on"),
        ("Authorization: Bearer aB3dE6gH9kL2", f"Authorization: Bearer {MARK}"),
        ('{"authorization": "Basic dXNlcjpwYXNzd29yZA=="}', f'{{"authorization": "Basic {MARK}"}}'),
        (f'api_key = "{HEX}"', f'api_key = "{MARK}"'),
        (f"export DB_PASSWORD={HEX[:16]}", f"export DB_PASSWORD={MARK}"),
        (f'secret: str = "{HEX}"', f'secret: str = "{MARK}"'),
        (f'{{\\"access_token\\": \\"{HEX}\\"}}', f'{{\\"access_token\\": \\"{MARK}\\"}}'),
        (f"?api-key={HEX}&x=1", f"?api-key={MARK}&x=1"),
        (f"İ password='{HEX}'", f"İ password='{MARK}'"),
    ],
)
def test_a_secret_is_known_by_what_stands_around_it(text: str, left: str) -> None:
    assert BY_SHAPE(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "token = settings.openai_api_key2",
        "token=self._next_token(reader.position)",
        'f"redis://{user}:{password}@{host}"',
        "password=os.environ['DB_PASSWORD_2']",
        'if "-----BEGIN PRIVATE KEY-----" in text: load_pem(text)',
        "max_tokens=16384, tokenizer='cl100k_base_v2'",
        "sk-fading-circle-container-big",
        "self, private_key: rsa.RSAPrivateKey, file: FragmentList",
        f"sha256 {HEX}{HEX}",
        'password = "correct horse battery staple"',
        "bearer authentication_of_the_caller",
        "secret = base64.b64encode(random_bytes)",
        "",
    ],
)
def test_ordinary_code_is_left_alone(text: str) -> None:
    assert BY_SHAPE(text) == text


def test_what_is_known_is_struck_out_in_every_spelling() -> None:
    redact = Redactor(frozenset({KNOWN, *url_secrets("https://me:p%40ss-word1@h/v1")}))
    for text in (KNOWN, "canary%2Fpass%2Bword%261", "Y2FuYXJ5L3Bhc3Mrd29yZCYx", "p@ss-word1", "p%40ss-word1"):
        assert redact(f"x{text}y") == f"x{MARK}y"
    assert redact("Basic bWU6cEBzcy13b3JkMQ==") == f"Basic {MARK}"
    assert KNOWN not in repr(redact)


def test_what_is_known_and_a_plain_word_is_left_alone() -> None:
    redact = Redactor(frozenset({"password", "short1", ""}))
    assert redact("the password is short1") == "the password is short1"


def test_what_the_other_side_knows_already_or_could_guess_is_not_given_away() -> None:
    one, two = f"canary-{HEX[:9]}", f"canary-{HEX[9:18]}"
    for word in ("not-needed", "sk-no-key-required", "token-abc123"):
        redact = Redactor(frozenset({one, two, word}))
        assert redact.without_given_away(f"{one} {two} {word}", f"has {two}") == f"{MARK} {two} {word}"
        assert redact(f"{one} {two} {word}") == f"{MARK} {MARK} {MARK}"


@given(st.text(), st.sampled_from((*TOKENS, KNOWN)), st.text())
def test_a_secret_never_gets_through_and_the_rest_does(before: str, secret: str, after: str) -> None:
    redact = Redactor(frozenset({KNOWN}))
    text = f"{before} {secret} {after}"
    assert secret not in redact(text)
    if BY_SHAPE(before) == before and BY_SHAPE(after) == after:
        assert redact(text).endswith(after) and redact(text).startswith(before)
    assert redact(redact(text)) == redact(text)


def test_a_line_of_the_log_and_its_traceback_hold_no_secret() -> None:
    def fail() -> None:
        raise ValueError(f"no such key: {KNOWN}")

    formatter = Discreet(Redactor(frozenset({KNOWN})))
    written = formatter.format(_logged(fail))
    assert KNOWN not in written and "Traceback" in written
    assert written.count(MARK) == 2


def _logged(fail: Callable[[], None]) -> logging.LogRecord:
    try:
        fail()
    except ValueError:
        return logging.LogRecord("x", logging.ERROR, "", 0, "with %s", (KNOWN,), sys.exc_info())
    raise AssertionError
