"""Patches: what is made from two contents gives the second one back, and nothing else does."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas import hunks
from codeconvoy.schemas.errors import PatchRejected, TooLarge
from codeconvoy.schemas.events import Hunk, Patch
from codeconvoy.schemas.topics import MAX_FILE_BYTES

LINE = st.one_of(
    st.sampled_from(
        [b"\n", b"\r\n", b"a\n", b"b\r\n", b"\xff\xfe\n", b"\x00\n", b"\xef\xbb\xbfx\n", b"a\x85b\n"]
    ),
    st.binary(max_size=6).map(lambda line: line + b"\n"),
)
TEXT = st.tuples(st.lists(LINE, max_size=30), st.binary(max_size=3)).map(lambda t: b"".join(t[0]) + t[1])


@st.composite
def edited(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A text and the same text after a few replaced runs of lines."""
    base = draw(TEXT)
    parts = hunks.lines(base)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(parts)))
        upto = draw(st.integers(at, min(len(parts), at + 4)))
        parts[at:upto] = draw(st.lists(LINE, max_size=3))
    return base, b"".join(parts)


@given(st.one_of(st.none(), st.binary()), st.one_of(st.none(), st.binary()), st.booleans())
def test_a_patch_of_any_bytes_gives_them_back(
    base: bytes | None, result: bytes | None, executable: bool
) -> None:
    patch = hunks.make_patch(base, result, executable=executable)
    assert hunks.apply(patch, base) == result
    assert patch.executable == (executable and result is not None)


@given(edited())
def test_hunks_alone_give_an_edited_text_back(pair: tuple[bytes, bytes]) -> None:
    base, result = pair
    made = hunks.diff(base, result)
    patch = Patch(
        base_sha256=hashlib.sha256(base).hexdigest(),
        result_sha256=hashlib.sha256(result).hexdigest(),
        hunks=made,
    )
    assert hunks.apply(patch, base) == result
    ends = [hunk.start + hunk.removed for hunk in made]
    assert all(end < hunk.start for end, hunk in zip(ends, made[1:], strict=False))
    assert all(hunk.removed or hunk.lines for hunk in made)


@given(st.binary())
def test_lines_are_the_content(content: bytes) -> None:
    split = hunks.lines(content)
    assert b"".join(split) == content
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in split[:-1])
    assert b"" not in split


def test_a_small_edit_of_a_large_file_is_a_small_patch() -> None:
    base = b"".join(b"line %d\r\n" % i for i in range(1000))
    result = base.replace(b"line 500\r\n", b"line five hundred\r\n")
    patch = hunks.make_patch(base, result)
    assert patch.content is None
    assert patch.hunks == (Hunk(start=500, removed=1, lines=b"line five hundred\r\n"),)


def test_a_rewritten_file_is_whole_content() -> None:
    patch = hunks.make_patch(b"a\n" * 100, b"b\n")
    assert patch.content == b"b\n"
    assert patch.hunks == ()


@given(edited())
def test_a_patch_is_rejected_on_any_other_base(pair: tuple[bytes, bytes]) -> None:
    base, result = pair
    patch = hunks.make_patch(base, result)
    for other in (base + b"x", None):
        with pytest.raises(PatchRejected, match="base_sha256"):
            hunks.apply(patch, other)


BASE = b"".join(b"line number %d\n" % i for i in (1, 2, 3, 4))
EDITED = b"".join(b"line number %d\n" % i for i in (1, 3, 4, 5))
GOOD = hunks.make_patch(BASE, EDITED)


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (msgspec.structs.replace(GOOD, result_sha256="0" * 64), "result_sha256"),
        (msgspec.structs.replace(GOOD, hunks=()), "result_sha256"),
        (msgspec.structs.replace(GOOD, result_sha256=None), "deletes the file"),
        (msgspec.structs.replace(GOOD, content=b"x"), "both"),
        (msgspec.structs.replace(GOOD, hunks=(Hunk(start=-1, removed=1, lines=b""),)), "outside"),
        (msgspec.structs.replace(GOOD, hunks=(Hunk(start=1, removed=-1, lines=b""),)), "outside"),
        (msgspec.structs.replace(GOOD, hunks=(Hunk(start=3, removed=2, lines=b""),)), "outside"),
        (msgspec.structs.replace(GOOD, hunks=(Hunk(start=5, removed=0, lines=b"x"),)), "outside"),
        (
            msgspec.structs.replace(
                GOOD, hunks=(Hunk(start=0, removed=2, lines=b""), Hunk(start=1, removed=1, lines=b""))
            ),
            "overlaps",
        ),
        (
            msgspec.structs.replace(
                GOOD, hunks=(Hunk(start=2, removed=1, lines=b""), Hunk(start=0, removed=1, lines=b""))
            ),
            "overlaps",
        ),
        (
            msgspec.structs.replace(
                GOOD, hunks=(Hunk(start=0, removed=0, lines=b"x" * (MAX_FILE_BYTES + 1)),)
            ),
            "over the cap",
        ),
    ],
)
def test_a_tampered_patch_is_rejected(patch: Patch, reason: str) -> None:
    assert hunks.apply(GOOD, BASE) == EDITED
    with pytest.raises(PatchRejected, match=reason):
        hunks.apply(patch, BASE)


def test_hunks_without_a_base_are_rejected() -> None:
    with pytest.raises(PatchRejected, match="no parent content"):
        hunks.apply(msgspec.structs.replace(GOOD, base_sha256=None), None)


def test_a_file_over_the_cap_is_not_made() -> None:
    assert hunks.make_patch(None, b"x" * MAX_FILE_BYTES).content is not None
    with pytest.raises(TooLarge):
        hunks.make_patch(None, b"x" * (MAX_FILE_BYTES + 1))
