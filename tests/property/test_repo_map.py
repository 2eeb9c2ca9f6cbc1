"""The repository's map on any sources: within its budget, the same for the same, and always there."""

import random

from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas.tasks import EditWork
from codeconvoy.workers.llm import tokens
from codeconvoy.workers.llm.outline import Outline, Outliner
from codeconvoy.workers.llm.prompts import build
from codeconvoy.workers.llm.repo_map import make, show
from codeconvoy.workers.roles.role import Role, RoleKind
from tests import contexts

OUTLINER = Outliner()
ROLE = Role(name="r", kind=RoleKind.EDIT, description="", provider="p")
PIECES = (
    b"def alpha(a: Beta) -> None: pass\n",
    b"class Beta:\n    def gamma_delta(self): alpha(1)\n",
    b"from x import alpha, Beta\n",
    b"Beta().gamma_delta()\n",
    b"    ",
    b"def broken(\n",
    "größe = 'ß' * 3\n".encode(),
    b'"""',
    b"\xff\x00",
    b"\n",
)
sources = st.one_of(
    st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=12).map(lambda some: b"".join(some))
)
paths = st.from_regex(r"(([ab]|ü)/){0,3}[a-d]\.(py|md)", fullmatch=True)
repositories = st.dictionaries(paths, sources, max_size=12)
goals = st.sampled_from(["", "alpha", "use gamma_delta of Beta in a/b.py", "größe"])


def outlines(files: dict[str, bytes]) -> dict[str, Outline]:
    return {path: OUTLINER.outline(source) for path, source in files.items()}


@given(repositories, goals, st.integers(0, 2_000), st.integers(0, 3))
def test_a_map_is_within_its_limit_and_every_file_is_counted_once(
    files: dict[str, bytes], goal: str, limit: int, in_full: int
) -> None:
    own = sorted(files)[:in_full]
    whole = make(outlines(files), "a.py", own, goal, 400, len(files) + 7)
    shown = show(whole, limit, {*own, "a.py"})
    assert len(shown.text.encode()) <= limit
    assert shown.files == len({*files} - {*own, "a.py"}) + 7
    assert min(shown.defined, shown.listed, shown.left_out - 7) >= 0


@given(repositories, goals, st.randoms(use_true_random=False))
def test_a_map_does_not_depend_on_the_order_of_files(
    files: dict[str, bytes], goal: str, chance: random.Random
) -> None:
    items, own = list(files.items()), sorted(files)[:3]
    first = make(outlines(files), "a.py", own, goal, 100, len(files))
    chance.shuffle(items)
    chance.shuffle(own)
    assert make(outlines(dict(items)), "a.py", own, goal, 100, len(files)) == first


@given(repositories, st.integers(1, 400), st.integers(0, 2_000))
def test_a_prompt_is_within_its_limit_and_the_map_within_its_own(
    files: dict[str, bytes], budget: int, room: int
) -> None:
    whole = make(outlines(files), "a.py", (), "", budget, len(files))
    plain = contexts.context(EditWork())
    without = build(plain, ROLE)
    limit = len(without.system) + len(without.message) + room
    prompt = build(contexts.context(EditWork(), map=whole), ROLE, limit)
    more = prompt.message.removeprefix(without.message)
    assert len(more) <= room and tokens.estimate(more) <= budget
    assert not more or "<data " in more
