"""Reads a task's context, writes an answer: an agent that is a program of the user's.

The program gets one JSON object on stdin (`task_json`) and gives one on stdout (`Output`): that is
all that an adapter of a coding CLI has to know. It runs in this process's environment and
directory, since a coding CLI has its own configuration and keys; it needs no access to the
repository, everything that it may see is on stdin.
"""

import asyncio
import base64
import binascii
import contextlib
import os
import signal
from collections.abc import Sequence

import msgspec

from codeconvoy.schemas.errors import AgentError
from codeconvoy.schemas.job_spec import TaskSpec
from codeconvoy.schemas.tasks import PlanWork, ResolveWork, ReviewWork, TestWork
from codeconvoy.workers.llm.agent import read_answer
from codeconvoy.workers.llm.edit_format import Mismatch
from codeconvoy.workers.llm.region_format import Filling, merged, shown
from codeconvoy.workers.resolution.regions import PartialMerge
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Plan, Role, Version, Vote
from codeconvoy.workers.roles.validators import Validator, objections, standard, writable

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
MERGE_TRIES = 2
"""Runs for one merge: the second is told why the first was refused."""
MAX_STDERR_BYTES = 2_000
"""Of the end of what it writes there: what an error message repeats."""
TRY_AGAIN = 75
"""Exit status EX_TEMPFAIL of sysexits.h: the same task may be tried again."""


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an answer: exactly one of content, content_base64 and delete."""

    path: str
    content: str | None = None
    """The whole new content, written as UTF-8."""
    content_base64: str | None = None
    delete: bool = False


class FilledRegion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What becomes of one region of a merge: its content, or why there is none."""

    number: int
    content: str | None = None
    conflict: str = ""


class Output(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a program answers: one of these, by the task's kind."""

    edits: tuple[Edit, ...] | None = None
    """For edit, test, resolve and merge. Empty: nothing needs to be changed."""
    text: str | None = None
    """As a model writes it: search/replace blocks (`edit_format`), for merge regions (`region_format`)."""
    regions: tuple[FilledRegion, ...] | None = None
    """For merge: each region."""
    approved: bool | None = None
    """For review."""
    comments: tuple[str, ...] | str = ()
    """Besides `approved`. One text is taken for a list of it: nothing else can be meant."""
    tasks: tuple[TaskSpec, ...] | None = None
    """For plan."""
    summary: str = ""
    error: str = ""
    """Why the task can't be done."""
    retryable: bool = False


class CommandAgent:
    """Does a role's work by running a program for each task."""

    def __init__(self, role: Role, argv: Sequence[str], *, validators: Sequence[Validator] = ()) -> None:
        """Nothing is started yet.

        Args:
            role: its prompt is handed to the program.
            argv: program and arguments; no shell is involved.
            validators: what an answer must pass besides the standard ones.
        """
        self._role, self._argv = role, tuple(argv)
        self._validators = (*standard(role.options), *validators)

    async def work(self, context: Context) -> Answer:
        """See `Agent`. The program and all that it started are killed when this ends, however it ends."""
        seconds = context.task.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._work(context)
        except TimeoutError as error:
            raise AgentError(f"{self._argv[0]}: no answer within the task's {seconds} s") from error

    async def _work(self, context: Context) -> Answer:
        flaws: tuple[str, ...] = ()
        for _ in range(MERGE_TRIES if context.merge is not None else 1):
            answer, flaws = await self._try(context, flaws)
            if answer is not None and not flaws:
                return answer
        raise AgentError(f"{self._argv[0]}: {' '.join(flaws)}")

    async def _try(
        self, context: Context, feedback: tuple[str, ...]
    ) -> tuple[Answer | None, tuple[str, ...]]:
        """One run: its answer, and what is wrong with that."""
        status, out, err = await run(self._argv, task_json(context, self._role, feedback))
        tail = err.decode(errors="replace").strip()
        if status != 0:
            reason = f"{self._argv[0]}: exit status {status}" + (f": {tail}" if tail else "")
            raise AgentError(reason, retryable=status == TRY_AGAIN)
        answer, flaws = self._answer(context, out, tail)
        if answer is not None:
            return answer, objections(context, answer, self._validators)
        return None, tuple(flaw.text for flaw in flaws)

    def _answer(self, context: Context, out: bytes, tail: str) -> tuple[Answer | None, tuple[Mismatch, ...]]:
        try:
            said = msgspec.json.decode(out, type=Output)
        except msgspec.MsgspecError as error:
            note = f" (stderr: {tail})" if tail else ""
            raise AgentError(f"{self._argv[0]}: its output is no answer: {error}{note}") from error
        if said.error:
            raise AgentError(f"{self._argv[0]}: {said.error}", retryable=said.retryable)
        if said.text is not None:
            return read_answer(context, said.text)
        if said.regions is not None and context.merge is not None:
            return merged(context.task.path, context.merge.partial, _filling(said))
        if said.approved is not None:
            return Vote(said.approved, _comments(said)), ()
        if said.tasks is not None:
            return Plan(said.tasks), ()
        if said.edits is not None:
            base = writable(context)
            files = (FileEdit(edit.path, self._content(edit)) for edit in said.edits)
            keep_same = isinstance(context.task.work, ResolveWork)
            changed = (f for f in files if keep_same or f.path not in base or f.content != base[f.path])
            return Edits(tuple(changed), said.summary), ()
        fields = "edits, text, regions, approved, tasks and error"
        raise AgentError(f"{self._argv[0]}: its output has none of {fields}")

    def _content(self, edit: Edit) -> bytes | None:
        given = (edit.content is not None) + (edit.content_base64 is not None) + edit.delete
        if given != 1:
            raise AgentError(
                f"{self._argv[0]}: the edit of {edit.path!r} needs one of content, content_base64, delete"
            )
        if edit.delete:
            return None
        if edit.content is not None:
            return edit.content.encode()
        try:
            return base64.b64decode(edit.content_base64 or "", validate=True)
        except binascii.Error as error:
            raise AgentError(f"{self._argv[0]}: content_base64 of {edit.path!r}: {error}") from error

    async def close(self) -> None:
        """Nothing is held between calls."""


def _comments(said: Output) -> tuple[str, ...]:
    """What a program says of its vote; an empty text is no comment."""
    if isinstance(said.comments, str):
        return (said.comments,) if said.comments.strip() else ()
    return said.comments


def _filling(said: Output) -> Filling:
    """What a program says of the regions."""
    given = said.regions or ()
    twice = sorted({one.number for one in given if [other.number for other in given].count(one.number) > 1})
    rows = {one.number: (one.content or "").replace("\r\n", "\n") for one in given if not one.conflict}
    return Filling(
        lines={
            number: tuple(text.removesuffix("\n").split("\n")) if text else ()
            for number, text in rows.items()
        },
        conflicts={one.number: one.conflict for one in given if one.conflict},
        summary=said.summary,
        flaws=tuple(f"Region {number} is answered twice." for number in twice),
    )


def task_json(context: Context, role: Role, feedback: Sequence[str] = ()) -> bytes:
    """What a program reads on stdin: one JSON object.

    Its fields: `kind` (edit, review, test, resolve, merge, plan), `task` (task_id, job_id,
    workspace, role, path, round, goal, deadline_seconds, and `work` with what its kind needs),
    `prompt`, `may_write` (paths), `feedback` (why an earlier round or try was not accepted), and
    files: `file`, `base` (or null), `others`, `heads`; for merge also `regions` and `intents`. A
    file is `path`, `event_id`, `executable`, `role`, `summary`, and one of `content` (UTF-8),
    `content_base64` (else), or `content: null` (absent).
    """
    task = context.task
    work = task.work
    document = {
        "kind": _kind(context),
        "task": {
            "task_id": task.task_id,
            "job_id": task.job_id,
            "workspace": task.workspace,
            "role": task.role,
            "path": task.path,
            "round": task.round,
            "goal": task.goal,
            "deadline_seconds": task.deadline_seconds,
            "work": work,
        },
        "prompt": role.prompt,
        "may_write": list(writable(context)),
        "feedback": feedback or getattr(work, "feedback", ()),
        "file": _version(context.file),
        "base": _version(context.base) if context.base else None,
        "others": [_version(version) for version in context.others],
        "heads": [_version(version) for version in context.heads],
        "regions": _regions(context.merge.partial) if context.merge else [],
        "intents": context.merge.intents if context.merge else [],
    }
    return msgspec.json.encode(document)


def _regions(partial: PartialMerge) -> list[dict[str, object]]:
    """The regions, each with the text before and after it, which stays."""
    texts = [shown(partial, text) for text in partial.texts]
    return [
        {
            "number": region.number,
            "base": shown(partial, region.base),
            "sides": [shown(partial, side) for side in region.sides],
            "before": texts[region.number - 1],
            "after": texts[region.number],
        }
        for region in partial.regions
    ]


def _kind(context: Context) -> str:
    if context.merge is not None:
        return "merge"
    match context.task.work:
        case ReviewWork():
            return "review"
        case TestWork():
            return "test"
        case ResolveWork():
            return "resolve"
        case PlanWork():
            return "plan"
        case _:
            return "edit"


def _version(version: Version) -> dict[str, object]:
    about: dict[str, object] = {
        "path": version.path,
        "event_id": version.event_id,
        "executable": version.executable,
        "role": version.role,
        "summary": version.summary,
    }
    if version.content is None:
        return about | {"content": None}
    try:
        return about | {"content": version.content.decode()}
    except UnicodeDecodeError:
        return about | {"content_base64": base64.b64encode(version.content).decode()}


class _Program(asyncio.SubprocessProtocol):
    """What a running program has written so far.

    A protocol and not `asyncio.subprocess`, whose `wait` returns only when all pipes are closed
    (Python 3.11), which something that the program left behind may never do.
    """

    def __init__(self) -> None:
        self.out, self.err = bytearray(), b""
        self.pid = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """The program is gone and its pipes are closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It was started."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.pid = transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It wrote something; too much of it ends it."""
        if fd == 2:
            self.err = (self.err + data)[-MAX_STDERR_BYTES:]
        elif not self.flooded:
            self.out += data
            if self.flooded:
                self.kill()

    @property
    def flooded(self) -> bool:
        """It wrote more than any answer may have."""
        return len(self.out) > MAX_OUTPUT_BYTES

    def process_exited(self) -> None:
        """What it left behind goes with it."""
        self.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        """All is over."""
        if not self.ended.done():
            self.ended.set_result(None)

    def kill(self) -> None:
        """Kill it with its whole process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


async def run(argv: Sequence[str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """Run a program in a process group of its own, which is killed when this ends.

    Returns:
        Exit status (negative: killed by that signal), stdout, the end of stderr.

    Raises:
        AgentError: it can't be started, or it writes over `MAX_OUTPUT_BYTES`.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, program = await loop.subprocess_exec(_Program, *argv, start_new_session=True)
    except (OSError, ValueError) as error:
        raise AgentError(f"{argv[0]}: it can't be started: {error}") from error
    try:
        feed = transport.get_pipe_transport(0)
        assert isinstance(feed, asyncio.WriteTransport)
        feed.write(stdin)
        feed.write_eof()
        # Shielded: cancelling this call must not cancel the future that its clean-up waits for.
        await asyncio.shield(program.ended)
    finally:
        program.kill()
        transport.close()
        await program.ended
    if program.flooded:
        raise AgentError(f"{argv[0]}: it wrote over {MAX_OUTPUT_BYTES} bytes")
    return transport.get_returncode() or 0, bytes(program.out), program.err
