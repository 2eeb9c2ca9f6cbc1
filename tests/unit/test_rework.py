"""A task that is done again goes on from its earlier answer: rebuilt from events, with what has moved."""

from dataclasses import replace

import msgspec
import pytest

from codeconvoy.schemas.events import CodeModified, Event, Read, Usage
from codeconvoy.schemas.file_history import Edit
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.schemas.ids import sha256
from codeconvoy.schemas.tasks import EditWork, TestWork
from codeconvoy.workers.file_states import Content
from codeconvoy.workers.former import former_of, with_former
from codeconvoy.workers.llm.prompts import Prompt, build, opening
from codeconvoy.workers.llm.provider import Message
from codeconvoy.workers.projection import FileView
from codeconvoy.workers.roles.role import Context, Former, Role, RoleKind, Version
from tests import builders, contexts

ROLE = Role("r", RoleKind.EDIT, "", "test")
BASE = contexts.version(b"".join(b"line %d\n" % number for number in range(30)))
assert BASE.content is not None
OWN = replace(BASE, event_id="own", content=BASE.content.replace(b"line 3\n", b"mine\n"), summary="mine")
NOW = replace(BASE, event_id="e2", content=BASE.content.replace(b"line 25\n", b"theirs\n"), role="namer")
READ, READ_NOW = (
    contexts.version(text, "b.py", event) for text, event in ((b"b = 1\n", "b1"), (b"b = 2\n", "b2"))
)


def again(work: EditWork | TestWork, former: Former, file: Version, *others: Version) -> Context:
    shown = contexts.context(work, file=file, others=others)
    return replace(shown, task=msgspec.structs.replace(shown.task, round=2), former=former)


def first(file: Version = BASE, *others: Version) -> Prompt:
    """The prompt of the first round."""
    return build(contexts.edit(file=file, others=others), ROLE)


def test_a_refused_edit_is_gone_on_from() -> None:
    former = Former({"a.py": BASE, "b.py": READ}, OWN, is_live=False)
    prompt = build(again(EditWork(feedback=("stale: moved",)), former, NOW, READ_NOW), ROLE)
    before = first(BASE, READ)
    assert prompt.system == before.system
    begun, answer, message = opening(prompt)
    assert (begun,) == opening(before), "so the provider has it in its cache"
    assert answer.role == "assistant" and "-" not in answer.content
    assert "SUMMARY: mine\na.py\n<<<<<<< SEARCH\nline 0\n" in answer.content and "\nmine\n" in answer.content
    assert "line 20\n" not in answer.content, "what it did not change is not said again"
    for part in ("stale: moved", "by namer", "-line 25\n+theirs", "-b = 1\n+b = 2", "round 2"):
        assert part in message.content
    assert "line 3\n" in message.content, "the file as it is now"
    assert message.content.count("theirs") == 2


def test_of_a_live_edit_only_what_came_after_it_has_moved() -> None:
    former = Former({"a.py": BASE, "b.py": READ}, OWN, is_live=True)
    *_, message = opening(build(again(EditWork(), former, OWN, READ_NOW), ROLE))
    assert "-b = 1\n+b = 2" in message.content and "-line 3" not in message.content
    merged = replace(OWN, event_id="m", content=(OWN.content or b"").replace(b"line 25\n", b"theirs\n"))
    *_, message = opening(build(again(EditWork(), former, merged, READ), ROLE))
    assert "-line 25\n+theirs" in message.content and "-line 3" not in message.content


def test_a_test_file_is_gone_on_from_too() -> None:
    work = TestWork(base="e0", test_path="t/test_a.py", feedback=("they fail",))
    absent = contexts.version(None, "t/test_a.py")
    own = Version("t/test_a.py", "own", b"x = 1\n")
    former = Former({"t/test_a.py": absent, "a.py": BASE}, own, is_live=True)
    begun, answer, message = opening(build(again(work, former, NOW, own), replace(ROLE, kind=RoleKind.TEST)))
    assert "line 25\n" in begun.content and "they fail" not in begun.content
    assert "t/test_a.py\n<<<<<<< WHOLE\nx = 1\n>>>>>>> WHOLE\n" in answer.content
    assert "they fail" in message.content and "-line 25\n+theirs" in message.content
    assert "t/test_a.py\n<data" in message.content


def test_what_does_not_fit_together_begins_anew() -> None:
    former = Former({"a.py": BASE}, OWN, is_live=False)
    context = again(EditWork(), former, NOW)
    alone = build(replace(context, former=None), ROLE)
    size = len(alone.system) + len(alone.message)
    assert build(context, ROLE, size) == alone
    assert build(context, ROLE).before


def test_a_conflict_is_told_to_the_author_of_the_edit_as_what_moved_under_it() -> None:
    context = contexts.resolve()
    assert context.base is not None
    prompt = build(context, ROLE)
    assert prompt.system == first().system
    assert prompt.before[0] == Message("user", first(context.base).message)
    assert "return 11" in prompt.before[1].content and "CONFLICT:" in prompt.message
    assert not build(context, replace(ROLE, kind=RoleKind.TEST)).before, "it was asked something else"


# From events ------------------------------------------------------------------------------------------


def seen(version: Version, *others: Version) -> FileView:
    """A file whose readers see a version; others are remembered."""
    contents = {
        one.event_id: Content(
            event_id=one.event_id,
            seq=0,
            role=one.role,
            summary=one.summary,
            edit=Edit(parents=(), live=True, content=one.content, sha256=sha256(one.content or b"")),
        )
        for one in (version, *others)
    }
    return FileView(version.path, version.event_id, (version.event_id,), contents)


def refused(base: Version = BASE) -> Event:
    usage = Usage(
        provider="p", model="m", tokens_in=5, tokens_cached=0, tokens_out=2, cost_usd=0.0, prompt_sha256=""
    )
    made = builders.event("own", CodeModified(patch=make_patch(base.content, OWN.content), summary="mine"))
    return msgspec.structs.replace(
        made,
        file_path="a.py",
        parent_event_ids=(base.event_id,),
        reads=(Read(path="b.py", event_id="b1"), Read(path="gone.py", event_id="g1")),
        usage=usage,
    )


def test_an_edit_is_made_anew_from_its_event() -> None:
    event = refused()
    assert with_former({"a.py": ("x",), "b.py": ()}, event) == {"a.py": ("x", "e1", "own"), "b.py": ("b1",)}
    assert with_former({"a.py": ()}, None) == {"a.py": ()}
    former = former_of(event, {"a.py": seen(NOW, BASE), "b.py": seen(READ_NOW, READ)})
    assert former is not None and (former.is_live, former.tokens) == (False, 7)
    assert (former.own.content, former.own.summary) == (OWN.content, "mine")
    assert {path: one.content for path, one in former.shown.items()} == {
        "a.py": BASE.content,
        "b.py": READ.content,
    }
    live = former_of(event, {"a.py": seen(NOW, BASE, OWN), "b.py": seen(READ_NOW)})
    assert live is not None and live.is_live and "b.py" not in live.shown


@pytest.mark.parametrize(
    "views", [{"a.py": seen(NOW)}, {"a.py": seen(NOW, replace(BASE, content=b"other\n"))}]
)
def test_what_is_forgotten_or_never_fitted_is_not_made_up(views: dict[str, FileView]) -> None:
    assert former_of(refused(), views) is None
