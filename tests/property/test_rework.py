"""Any edit can be said in blocks that give exactly its bytes, or is not said at all."""

from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.workers.llm.edit_format import propose
from codeconvoy.workers.llm.rework import as_answer
from codeconvoy.workers.roles.role import FileEdit, Version

LINES = st.sampled_from(
    ["", "a", "b", "    c", "é", "=======", "<<<<<<< SEARCH", ">>>>>>> REPLACE", "```", "x\r"]
)
CONTENTS = st.none() | st.builds(
    lambda lines, end: ("\n".join(lines) + end).encode(),
    st.lists(LINES, max_size=12),
    st.sampled_from(["", "\n"]),
)


@given(CONTENTS, CONTENTS)
def test_the_answer_gives_the_edit(base: bytes | None, own: bytes | None) -> None:
    answer = as_answer(Version("a.py", "1", base), Version("a.py", "2", own, summary="x\ny"))
    if answer is not None:
        expected = () if base == own else (FileEdit("a.py", own),)
        assert propose(answer, {"a.py": base}).files == expected


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.lists(st.sampled_from("abcdef"), max_size=30))
def test_plain_text_can_always_be_said(base: list[str], own: list[str]) -> None:
    before, after = ("".join(f"{line}\n" for line in lines).encode() for lines in (base, own))
    assert as_answer(Version("a.py", "1", before), Version("a.py", "2", after)) is not None
