"""Reads and writes temporary files: whatever fills the regions of a merge, nothing else changes."""

import subprocess
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from codeconvoy.schemas.hunks import lines
from codeconvoy.workers.resolution.regions import PartialMerge, partial_merge
from tests.fork_histories import fork_of

LINES = [b"a\n", b"b\n", b"c\r\n", b"\n", b"\xff\n", b"=======\n", b"<<<<<<< x\n", b" a\n", b"!\n"]
texts = st.lists(st.sampled_from(LINES), max_size=10).flatmap(
    lambda drawn: st.sampled_from([b"".join(drawn), b"".join(drawn) + b"end"])
)
"""Small texts that clash often, with everything that a line of bytes may hold."""


slow = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def merges(draw: st.DrawFn) -> tuple[bytes, PartialMerge]:
    """A base, and what git makes of two sides of it, where that leaves regions."""
    base = draw(texts)
    found = partial_merge(*fork_of(base, draw(texts), draw(texts)))
    assume(isinstance(found, PartialMerge))
    assert isinstance(found, PartialMerge)
    return base, found


@slow
@given(merges(), st.data())
def test_no_answer_changes_a_line_outside_of_the_regions(
    drawn: tuple[bytes, PartialMerge], data: st.DataObject
) -> None:
    merge = drawn[1]
    answers = {region.number: data.draw(texts) for region in merge.regions}
    content = merge.assembled(answers)
    assert merge.strays(content) == ""
    # The lines around the regions are all there, as they were, in their order.
    rest = lines(content)
    for text in merge.texts[:-1]:
        kept = lines(text)
        at = next(i for i in range(len(rest) + 1) if rest[i : i + len(kept)] == kept)
        rest = rest[at + len(kept) :]
    last = lines(merge.texts[-1])
    assert rest[len(rest) - len(last) :] == last


@slow
@given(merges(), st.data())
def test_a_changed_line_outside_of_the_regions_is_noticed(
    drawn: tuple[bytes, PartialMerge], data: st.DataObject
) -> None:
    merge = drawn[1]
    filled = [f"region {region.number}\n".encode() for region in merge.regions]
    around = [lines(text) for text in merge.texts]
    places = [(i, j) for i, part in enumerate(around) for j in range(len(part))]
    assume(places)
    i, j = data.draw(st.sampled_from(places))
    around[i][j] = b"changed\n"
    parts = [b"".join(part) for part in around]
    content = parts[0] + b"".join(fill + part for fill, part in zip(filled, parts[1:], strict=True))
    assert merge.strays(content)


@slow
@given(merges())
def test_one_side_in_all_regions_is_what_git_makes_of_favouring_it(
    drawn: tuple[bytes, PartialMerge],
) -> None:
    base, merge = drawn
    with tempfile.TemporaryDirectory() as name:
        names = ("ours", "base", "theirs")
        for file, content in zip(names, (merge.sides[0], base, merge.sides[1]), strict=True):
            (Path(name) / file).write_bytes(content)
        for number, favour in enumerate(("--ours", "--theirs")):
            command = ["git", "merge-file", "-p", favour, *names]
            said = subprocess.run(command, cwd=name, capture_output=True, check=True)
            filled = {region.number: region.sides[number] for region in merge.regions}
            assert merge.assembled(filled) == said.stdout
