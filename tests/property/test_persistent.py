"""The persistent collections are dicts, queues and heaps of which every version stays as it was."""

from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas.persistent import PersistentHeap, PersistentMap, PersistentQueue

KEYS = st.integers(0, 30).map(str)
CHANGE = st.dictionaries(KEYS, st.one_of(st.none(), st.integers()), max_size=4)


@given(
    st.dictionaries(KEYS, st.integers()),
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 60)), CHANGE), max_size=60),
)
def test_it_is_a_dict_of_which_every_version_stays(
    start: dict[str, int], changes: list[tuple[int | None, dict[str, int | None]]]
) -> None:
    """Order included, also where a key is removed and comes back; whichever version is changed."""
    versions = [(PersistentMap(start), dict(start))]
    for number, change in changes:
        now, expected = versions[-1 if number is None else number % len(versions)]
        as_dict = dict(expected)
        allowed = {k: v for k, v in change.items() if v is not None or k in as_dict}
        now = now.updated(allowed)
        for key, value in allowed.items():
            if value is None:
                del as_dict[key]
            else:
                as_dict[key] = value
        versions.append((now, as_dict))
    for version, expected in versions:
        assert list(version.items()) == list(expected.items())
        assert list(version.latest()) == list(reversed(expected.items()))
        assert list(version) == list(expected)
        assert list(version.values()) == list(expected.values())
        assert version == expected
        assert len(version) == len(expected)
        for key in map(str, range(31)):
            assert version.get(key) == expected.get(key)
            assert version.get(key, -1) == expected.get(key, -1)
            assert (key in version) == (key in expected)
    _check_changes(versions)


def _check_changes(versions: list[tuple[PersistentMap[int], dict[str, int]]]) -> None:
    """From any version to any other: applied to the one it makes the other."""
    for before, was in versions[::7]:
        for after, is_now in versions[::5]:
            made = dict(was)
            for key, (old, new) in after.changed_since(before).items():
                assert old == was.get(key)
                if new is None:
                    made.pop(key)
                else:
                    made[key] = new
            assert made == is_now
    last, is_now = versions[-1]
    assert last.changed_since(None) == {key: (None, value) for key, value in is_now.items()}
    assert last.changed_since(last) == {}


def test_a_small_change_of_a_large_map_is_found_without_looking_at_all_of_it() -> None:
    """What differs between two versions is asked for after every batch."""
    before = PersistentMap({str(number): object() for number in range(10_000)})
    large = before._dict
    after = before.updated({"7": object()}).updated({"7": object(), "new": object()})
    assert set(after.changed_since(before)) == {"7", "new"}
    assert after._dict is large, "the large dict was copied"


@given(st.lists(KEYS, max_size=5), st.lists(st.one_of(st.none(), KEYS), max_size=60))
def test_a_queue_gives_back_in_order_what_was_put_in(start: list[str], steps: list[str | None]) -> None:
    """A step is an item to be added, or None: take the first out."""
    now, as_list = PersistentQueue(start), list(start)
    versions = [(now, list(as_list))]
    for step in steps:
        if step is not None:
            now, as_list = now.pushed(step), [*as_list, step]
        elif as_list:
            now, as_list = now.without_first(), as_list[1:]
        versions.append((now, list(as_list)))
    for version, expected in versions:
        assert list(version) == expected
        assert len(version) == len(expected)
        assert version.first == (expected[0] if expected else None)
        assert version.last == (expected[-1] if expected else None)
        assert version == PersistentQueue(expected)
        assert hash(version) == hash(PersistentQueue(expected))


PAIRS = st.tuples(st.integers(0, 9), KEYS)


@given(st.lists(PAIRS, max_size=5), st.lists(st.one_of(st.none(), PAIRS), max_size=60))
def test_a_heap_gives_back_the_earliest_first(
    start: list[tuple[int, str]], steps: list[tuple[int, str] | None]
) -> None:
    now, as_list = PersistentHeap(start), sorted(start)
    versions = [(now, list(as_list))]
    for step in steps:
        if step is not None:
            now, as_list = now.pushed(step), sorted([*as_list, step])
        elif as_list:
            now, as_list = now.without_first(), as_list[1:]
        versions.append((now, list(as_list)))
    for version, expected in versions:
        assert sorted(version) == expected
        assert version.first == (expected[0] if expected else None)
        assert version == PersistentHeap(reversed(expected))
        assert hash(version) == hash(PersistentHeap(expected))


def test_a_large_heap_is_no_deep_recursion() -> None:
    """In whatever order its pairs come."""
    for order in (range(20_000), reversed(range(20_000))):
        heap = PersistentHeap((number, "x") for number in order)
        for number in range(100):
            assert heap.first == (number, "x")
            heap = heap.without_first()
