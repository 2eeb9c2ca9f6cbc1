"""Whatever the bytes: they survive, an exact block does just what it says, a reply never crashes."""

from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.workers.llm.edit_format import propose
from codeconvoy.workers.llm.text import Region, decode, encode, trimmed

LINES = st.lists(st.sampled_from(["a", "b", " ", "", "=======", "é", "x = 1", "\t", "\x0c"]), max_size=8)
ENDS = st.sampled_from([b"\n", b"\r\n"])
CONTENT = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet="ab\n\r\ufeffé=", max_size=40).map(str.encode),
)
MARKS = ["<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "<<<<<<< WHOLE", ">>>>>>> WHOLE", "a.py", "x", ""]


@given(CONTENT)
def test_content_survives(content: bytes) -> None:
    text = decode(content)
    assert encode(text, []) == content
    everything = trimmed(text, Region(0, len(text.lines), text.lines))
    assert everything.start == everything.stop and everything.lines == ()


@given(LINES, LINES, ENDS, st.booleans())
def test_a_whole_file_is_what_was_written(old: list[str], new: list[str], end: bytes, mark: bool) -> None:
    head = b"\xef\xbb\xbf" if mark and old else b""
    base = head + b"".join(line.encode() + end for line in old)
    reply = "a.py\n<<<<<<< WHOLE\n" + "".join(f"{line}\n" for line in new) + ">>>>>>> WHOLE"
    proposal = propose(reply, {"a.py": base})
    wanted = head + b"".join(line.encode() + (end if old else b"\n") for line in new)
    got = proposal.files[0].content if proposal.files else base
    assert not proposal.flaws and got == wanted


@given(st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=12), st.data(), ENDS)
def test_a_block_replaces_just_its_lines(numbers: list[int], data: st.DataObject, end: bytes) -> None:
    lines = [f"line {number}" for number in numbers]
    start = data.draw(st.integers(0, len(lines) - 1))
    stop = data.draw(st.integers(start + 1, len(lines)))
    new = data.draw(st.lists(st.sampled_from(["new", "=======", ""]), max_size=4))
    closed = len(lines) == 1 or data.draw(st.booleans())
    base = end.join(line.encode() for line in lines) + (end if closed else b"")
    search, replacement = ("".join(f"{line}\n" for line in part) for part in (lines[start:stop], new))
    reply = f"a.py\n<<<<<<< SEARCH\n{search}=======\n{replacement}>>>>>>> REPLACE"
    proposal = propose(reply, {"a.py": base})
    assert not proposal.flaws
    (edit,) = proposal.files
    wanted = [*lines[:start], *new, *lines[stop:]]
    assert edit.content == (end.join(line.encode() for line in wanted) + (end if closed and wanted else b""))


@given(st.lists(st.sampled_from(MARKS), max_size=12), CONTENT)
def test_a_reply_is_either_applied_or_flawed(reply: list[str], content: bytes) -> None:
    proposal = propose("\n".join(reply), {"a.py": content})
    assert not (proposal.files and proposal.flaws)
    assert all(edit.path == "a.py" and edit.content != content for edit in proposal.files)
