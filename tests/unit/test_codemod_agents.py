"""The rule-based agents: edits, reworks, reconciliations, votes, and what they leave alone."""

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from codeconvoy.schemas.errors import AgentError, BadInput
from codeconvoy.schemas.events import Strategy
from codeconvoy.schemas.tasks import EditWork, ResolveWork, ReviewWork, Task, TestWork, Work
from codeconvoy.workers.roles.codemod.agents import make_agent
from codeconvoy.workers.roles.codemod.roles import EDITORS, REVIEWER, ROLES, TESTER
from codeconvoy.workers.roles.role import Answer, Context, Edits, Role, RoleKind, Version, Vote

PATH = "pkg/mod.py"
OLD = b"""import sys, os
from typing import Dict

class A(object):
    def f(self, a):
        if (a):
            return dict([(k, v) for k, v in a.items()])
        else:
            return u"%s" % os.sep
        while 1 == a:
            b = list(sorted(a))
        while 1:
            try:
                a()
            except ValueError:
                pass
"""


def role(name: str) -> Role:
    return next(one for one in ROLES if one.name == name)


def answer(
    of: Role,
    work: Work,
    content: bytes | None,
    *,
    path: str = PATH,
    base: bytes | None = None,
    heads: tuple[bytes | None, ...] = (),
) -> Answer:
    task = Task(task_id="t", job_id="j", workspace="w", role=of.name, path=path, round=1, goal="", work=work)
    context = Context(
        task=task,
        file=Version(path, "own", content),
        base=None if base is None else Version(path, "base", base),
        heads=tuple(Version(path, f"head{number}", head) for number, head in enumerate(heads)),
    )

    async def ask() -> Answer:
        agent = make_agent(of)
        try:
            return await agent.work(context)
        finally:
            await agent.close()

    return asyncio.run(ask())


def edited(of: Role, content: bytes, work: Work = EditWork(), base: bytes | None = None) -> bytes | None:
    """The new content, None where nothing was edited."""
    edits = answer(of, work, content, base=base)
    assert isinstance(edits, Edits)
    assert edits.summary
    return edits.files[0].content if edits.files else None


RESOLVE = ResolveWork(
    conflict_id="c", attempt=1, heads=("own", "head0"), base="base", own="own", strategy=Strategy.REWORK
)


@pytest.mark.parametrize(
    ("name", "gone", "there"),
    [
        ("pyupgrade", b"(object)", b"class A:"),
        ("isort", b"import sys, os", b"import os\nimport sys\n"),
        ("unused-imports", b"Dict", b"import os"),
        ("simplify", b"1 == a", b"a == 1"),
        ("comprehensions", b"list(sorted(", b"sorted("),
        ("returns", b"else:", b"return"),
        ("tidy", b"if (a)", b"while True"),
    ],
)
def test_every_editor_does_its_own_work(name: str, gone: bytes, there: bytes) -> None:
    new = edited(role(name), OLD)
    assert new is not None
    assert gone not in new
    assert there in new
    assert edited(role(name), new) is None


def test_fixes_that_ruff_calls_unsafe_are_left() -> None:
    assert edited(role("comprehensions"), b"x = set([1, 2])\ny = dict(a=1)\n") is None


def test_the_target_version_is_an_option_of_the_role() -> None:
    text = b"from typing import Union\n\nX: Union[int, str]\n"
    modern = Role(
        "up", RoleKind.EDIT, "", "codemod", options={"rules": "ruff:UP007", "target_version": "py310"}
    )
    assert edited(modern, text) is not None
    assert edited(role("pyupgrade"), text) is None


@pytest.mark.parametrize("name", [one.name for one in (*EDITORS, TESTER)])
@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("README.rst", b"x = not a in b", "not Python"),
        (PATH, b"print 'a'; x = not a in b\n", "does not parse"),
        (PATH, None, "does not exist"),
    ],
)
def test_what_can_not_be_worked_on_is_left_and_said(
    name: str, path: str, content: bytes | None, said: str
) -> None:
    work = TestWork(base="", test_path="tests/test_x.py") if name == "tester" else EditWork()
    edits = answer(role(name), work, content, path=path)
    assert isinstance(edits, Edits)
    assert edits.files == ()
    assert said in edits.summary


def test_another_encoding_than_utf_8_is_left_and_said() -> None:
    edits = answer(role("pyupgrade"), EditWork(), "# coding: latin-1\nx = u'é'\n".encode("latin-1"))
    assert edits == Edits((), summary=f"{PATH} is not UTF-8")


def test_line_ends_and_bom_survive() -> None:
    assert (
        edited(role("pyupgrade"), b"\xef\xbb\xbfx = u'a'\r\ny = 1\r\n") == b"\xef\xbb\xbfx = 'a'\r\ny = 1\r\n"
    )
    assert edited(role("isort"), b"import b\r\nimport a\r\n") == b"import a\r\nimport b\r\n"


def test_an_unused_import_of_a_package_is_its_offer() -> None:
    content = b"from pkg.inner import Thing\n"
    edits = answer(role("unused-imports"), EditWork(), content, path="pkg/__init__.py")
    assert isinstance(edits, Edits)
    assert edits.files == ()
    assert edited(role("unused-imports"), b"from a import b\n__all__ = ['b']\n") is None


def test_after_a_rejection_rules_that_break_something_are_left_out() -> None:
    """Dropping the import takes `b` from whoever imports it through `__all__`, as the base had it."""
    base = b"import os\nfrom a import b\n__all__ = ['b']\nx = u'a'\n"
    content = b"import os\nfrom a import b\nx = u'a'\n"
    editor = Role("both", RoleKind.EDIT, "", "codemod", options={"rules": "ruff:F401,UP"})
    assert edited(editor, content) == b"x = 'a'\n"
    carefully = edited(editor, content, EditWork(feedback=("b is gone",)), base)
    assert carefully == b"import os\nfrom a import b\nx = 'a'\n"


def test_after_a_rejection_without_a_fault_the_edit_is_the_same() -> None:
    carefully = edited(role("tidy"), OLD, EditWork(feedback=("I do not like it",)))
    assert carefully == edited(role("tidy"), OLD)


def test_reconciling_applies_the_rules_to_the_other_head() -> None:
    own, other = edited(role("tidy"), OLD), edited(role("pyupgrade"), OLD)
    assert own and other
    edits = answer(role("tidy"), RESOLVE, own, base=OLD, heads=(other,))
    assert isinstance(edits, Edits)
    assert edits.files[0].content == edited(role("tidy"), other)
    assert b"class A:" in (edits.files[0].content or b"")


def test_reconciling_answers_with_the_other_head_where_nothing_is_left_to_do() -> None:
    own = edited(role("tidy"), OLD)
    other = b"x = 1\n" + (own or b"")
    edits = answer(role("tidy"), RESOLVE, own, base=OLD, heads=(other,))
    assert isinstance(edits, Edits)
    assert edits.files[0].content == other


@pytest.mark.parametrize(
    ("own", "base", "heads", "said"),
    [
        (b"x = 1  # by hand\n", b"x = u'a'\n", (b"x = u'b'\n",), "more than"),
        (b"x = 'a'\n", None, (b"x = u'b'\n",), "two new files"),
        (b"x = 'a'\n", b"x = u'a'\n", (None,), "deletion"),
        (b"x = 'a'\n", b"x = u'a'\n", (b"print 'x'\n",), "parse"),
        (b"x = 'a'\n", b"x = u'a'\n", (b"y\n", b"z\n"), "one other head"),
    ],
)
def test_what_can_not_be_reconciled_is_refused_for_good(
    own: bytes, base: bytes | None, heads: tuple[bytes | None, ...], said: str
) -> None:
    with pytest.raises(AgentError, match=said) as raised:
        answer(role("pyupgrade"), RESOLVE, own, base=base, heads=heads)
    assert not raised.value.retryable


def test_the_reviewer_approves_rejects_and_remarks() -> None:
    def vote(content: bytes) -> Vote:
        given = answer(REVIEWER, ReviewWork(version="v", base="b"), content, base=OLD)
        assert isinstance(given, Vote)
        return given

    assert vote(edited(role("pyupgrade"), OLD) or b"") == Vote(approved=True)
    refused = vote(OLD.replace(b"def f", b"def g"))
    assert not refused.approved
    assert refused.comments == (f"{PATH}:5: public function A.f is gone [lost]",)
    remarked = vote(OLD.replace(b"os.sep", b"1"))
    assert remarked.approved
    assert "F401" in remarked.comments[0]


@pytest.mark.parametrize("name", ["tidy", "tester"])
def test_work_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(AgentError):
        answer(role(name), ReviewWork(version="v", base="b"), OLD)


@pytest.mark.parametrize("rules", ["", "ruff:", "libcst:other", "nothing"])
def test_unknown_rules_are_bad_input(rules: str) -> None:
    with pytest.raises(BadInput, match=r"roles\.own\.options\.rules"):
        make_agent(Role("own", RoleKind.EDIT, "", "codemod", options={"rules": rules}))


def test_ruff_is_killed_when_the_task_is_cancelled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "ruff"
    slow.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 600\n"
    )
    slow.chmod(0o755)
    monkeypatch.setattr("ruff.find_ruff_bin", lambda: str(slow))
    task = Task(
        task_id="t", job_id="j", workspace="w", role="r", path=PATH, round=1, goal="", work=EditWork()
    )

    def started() -> int:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return int((tmp_path / "pid").read_text())

    async def cancelled() -> int:
        working = asyncio.create_task(
            make_agent(role("pyupgrade")).work(Context(task=task, file=Version(PATH, "e", OLD)))
        )
        pid = await asyncio.to_thread(started)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        return pid

    assert not psutil.pid_exists(asyncio.run(cancelled()))
