"""Whatever the order in which tasks end, a commit never passes one that is not done."""

from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.workers.engine.limits import MAX_METADATA
from codeconvoy.workers.engine.offsets import MAX_SPAN, Offsets, decode, encode

OFFSETS = st.integers(0, 10**12)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=60),
    st.data(),
)
def test_after_a_crash_exactly_what_was_not_committed_is_done_again(
    gaps: list[int], data: st.DataObject
) -> None:
    log: list[int] = []
    for gap in gaps:  # the gaps are markers
        log.append((log[-1] if log else -1) + gap)
    committed: set[int] = set()
    base, metadata = 0, ""
    for _ in range(4):  # processes, one after the other
        offsets = Offsets(base, base, decode(base, metadata))
        begun = [at for at in log if at >= base and offsets.begin(at)]
        assert set(begun) == {at for at in log if at not in committed}
        read = data.draw(st.integers(0, len(begun)))
        rounds = data.draw(st.lists(st.sets(st.sampled_from(begun[:read])), max_size=3)) if read else []
        for done in rounds:
            done -= committed
            point = offsets.point(done)
            offsets.finish(done)
            committed |= done
            assert offsets.point() == point
            base, metadata = point.offset, point.metadata
            assert len(metadata) <= MAX_METADATA
            assert all(at in committed for at in log if at < base)


@given(OFFSETS, st.sets(st.integers(0, 2 * MAX_SPAN), max_size=200))
def test_a_map_comes_back_as_far_as_it_reaches(base: int, above: set[int]) -> None:
    metadata = encode(base, {base + bit for bit in above})
    assert len(metadata) <= MAX_METADATA
    assert metadata.isascii()
    assert decode(base, metadata) == {base + bit for bit in above if bit < MAX_SPAN}


@given(OFFSETS, st.sets(st.integers(0, 100), min_size=1), st.integers(0, 200))
def test_a_later_commit_without_a_map_of_its_own_takes_what_is_above_it(
    base: int, above: set[int], further: int
) -> None:
    metadata = encode(base, {base + bit for bit in above})
    assert decode(base + further, metadata) == {base + bit for bit in above if bit >= further}


@given(OFFSETS, st.text(max_size=80), st.sets(st.integers(0, 50), min_size=1), st.data())
def test_what_is_damaged_or_foreign_names_nothing(
    base: int, foreign: str, above: set[int], data: st.DataObject
) -> None:
    metadata = encode(base, {base + bit for bit in above})
    at = data.draw(st.integers(0, len(metadata) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda character: character != metadata[at]))
    assert decode(base, metadata[:at] + other + metadata[at + 1 :]) == set()
    assert decode(base, metadata[:at]) == set()
    if not foreign.startswith("v1:"):
        assert decode(base, foreign) == set()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30, unique=True), st.data())
def test_what_is_dropped_holds_the_base_until_it_is_read_again(read: list[int], data: st.DataObject) -> None:
    offsets = Offsets(0)
    read.sort()
    for at in read:
        assert offsets.begin(at)
    stopped = data.draw(st.sampled_from(read))
    for at in read:
        if at > stopped:
            offsets.drop(at)
        elif at < stopped:
            offsets.finish([at])
    assert offsets.point().offset <= stopped
    offsets.read_again(stopped)
    assert all(at >= offsets.base for at in read if at > stopped)
    assert all(offsets.begin(at) for at in read if at > stopped)
    assert offsets.in_hand == sum(at > stopped for at in read)
