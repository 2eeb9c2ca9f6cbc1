"""Reads nothing, writes nothing: what an answer must pass before it counts.

A validator says what is wrong with an answer, in words that its model can act on. It never
repairs one. The standard ones refuse what a model makes up: files outside the task, emptied
files, Python that does not parse, definitions that are gone. A role may add its own (option
`validators`).
"""

import ast
import codecs
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from codeconvoy.schemas.paths import is_normal
from codeconvoy.schemas.tasks import EditWork, PlanWork, ResolveWork, ReviewWork, TestWork
from codeconvoy.schemas.topics import MAX_FILE_BYTES, MAX_TASKS_PER_JOB
from codeconvoy.workers.python_tree import NOT_PYTHON, python_tree
from codeconvoy.workers.resolution import validate
from codeconvoy.workers.roles.definitions import defined, dropped, mentioned
from codeconvoy.workers.roles.role import Answer, Context, Edits, Plan, Vote

MAX_NAMES = 20
"""Names that one objection lists."""

Validator = Callable[[Context, Answer], tuple[str, ...]]
"""Gives the objections to an answer; none lets it pass."""


def objections(context: Context, answer: Answer, validators: Sequence[Validator]) -> tuple[str, ...]:
    """All that the validators object to."""
    return tuple(chain.from_iterable(validator(context, answer) for validator in validators))


def writable(context: Context) -> dict[str, bytes | None]:
    """The files that the task may write, as the agent was shown them; None is an absent one."""
    task = context.task
    match task.work:
        case EditWork(also=also):
            paths: tuple[str, ...] = (task.path, *also)
        case TestWork(test_path=test_path):
            paths = (test_path,)
        case ResolveWork():
            paths = (task.path,)
        case _:
            paths = ()
    shown = {version.path: version.content for version in (*context.others, context.file)}
    return {path: shown.get(path) for path in paths}


def right_kind(context: Context, answer: Answer) -> tuple[str, ...]:
    """The answer is of the kind that the work asks for."""
    match context.task.work:
        case EditWork() | TestWork() | ResolveWork():
            wanted: type[Answer] = Edits
        case ReviewWork():
            wanted = Vote
        case PlanWork():
            wanted = Plan
        case other:
            return (f"No agent does {type(other).__name__}.",)
    return () if isinstance(answer, wanted) else (f"The answer must be {wanted.__name__.lower()}.",)


def within_task(context: Context, answer: Answer) -> tuple[str, ...]:
    """Edits touch the task's files only, each once; a test is never deleted."""
    if not isinstance(answer, Edits):
        return ()
    allowed, paths = writable(context), [file.path for file in answer.files]
    found = [f"{path[:200]!r} is not a file of this task." for path in paths if path not in allowed]
    if len(set(paths)) < len(paths):
        found.append("A file is answered twice.")
    if isinstance(context.task.work, TestWork) and any(file.content is None for file in answer.files):
        found.append("The test file must not be deleted.")
    return tuple(found)


def not_emptied(context: Context, answer: Answer) -> tuple[str, ...]:
    """No file becomes blank, or is made blank; deleting is explicit."""
    return tuple(
        f"{path!r} would be blank. To delete it, say so."
        for path, content, base in _written(context, answer)
        if _blank(content) and (base is None or not _blank(base))
    )


def not_too_large(context: Context, answer: Answer) -> tuple[str, ...]:
    """No file becomes larger than what the fleet edits."""
    return tuple(
        f"{path!r} would have {len(content)} bytes, over the limit of {MAX_FILE_BYTES}."
        for path, content, _ in _written(context, answer)
        if len(content) > MAX_FILE_BYTES
    )


def python_parses(context: Context, answer: Answer) -> tuple[str, ...]:
    """Python parses, unless it did not before either (it may be for another Python)."""
    return tuple(
        f"{path!r} does not parse as Python: {error}"
        for path, content, base in _written(context, answer)
        if path.endswith((".py", ".pyi"))
        and (error := syntax_error(content))
        and (base is None or not syntax_error(base))
    )


def keeps_definitions(context: Context, answer: Answer) -> tuple[str, ...]:
    """An edit drops no definition that the task does not speak of; moving one within the answer is fine."""
    if not isinstance(answer, Edits):
        return ()
    work = context.task.work
    said = [context.task.goal, *(work.feedback if isinstance(work, EditWork) else ())]
    found = []
    for path, names in _dropped(context, answer).items():
        if lost := [name for name in names if not mentioned(name, path, said)]:
            some = ", ".join(lost[:MAX_NAMES]) + (", …" if len(lost) > MAX_NAMES else "")
            found.append(f"{path!r} would no longer define {some}. The task does not ask for that: keep it.")
    return tuple(found)


def _dropped(context: Context, answer: Edits) -> Mapping[str, Sequence[str]]:
    """The definitions that an answer drops. In a conflict, no side's is dropped but what another side has
    dropped already."""
    # Of a file that would be blank `not_emptied` speaks.
    after = {f.path: f.content for f in answer.files if f.content is None or not _blank(f.content)}
    path = context.task.path
    match context.task.work:
        case EditWork():
            return dropped(writable(context), after)
        case ResolveWork():
            sides = [version.content for version in (context.file, *context.heads)]
            gone = dict.fromkeys(n for side in sides for n in dropped({path: side}, after).get(path, ()))
            before = defined(path, context.base.content if context.base else None)
            kept = [defined(path, side) for side in sides]
            return {path: [n for n in gone if n not in before or all(n in names for names in kept)]}
    return {}


def has_unittests(context: Context, answer: Answer) -> tuple[str, ...]:
    """A Python test file holds a class with a test method, so that unittest finds something to run."""
    if not isinstance(context.task.work, TestWork):
        return ()
    return tuple(
        f"{path!r} holds no class with a method whose name starts with 'test'."
        for path, content, _ in _written(context, answer)
        if path.endswith(".py") and not syntax_error(content) and not _tests(content)
    )


def gives_reasons(context: Context, answer: Answer) -> tuple[str, ...]:
    """A vote against says why."""
    if isinstance(answer, Vote) and not answer.approved and not any(c.strip() for c in answer.comments):
        return ("A vote against needs at least one comment that says why.",)
    return ()


def plan_in_scope(context: Context, answer: Answer) -> tuple[str, ...]:
    """A plan has tasks, each for a role of the job and a path inside the repository, none twice."""
    work = context.task.work
    if not isinstance(answer, Plan) or not isinstance(work, PlanWork):
        return ()
    tasks = answer.tasks
    if not 1 <= len(tasks) <= MAX_TASKS_PER_JOB:
        return (f"A plan has 1 to {MAX_TASKS_PER_JOB} tasks, this one has {len(tasks)}.",)
    found = [
        f"{task.role!r} is no role of this job (they are {', '.join(work.roles)})."
        for task in tasks
        if task.role not in work.roles
    ]
    paths = chain.from_iterable((task.path, *task.also, *task.reads) for task in tasks)
    found += [f"{path[:200]!r} is not a path inside the repository." for path in paths if not is_normal(path)]
    if len({(task.role, task.path) for task in tasks}) < len(tasks):
        found.append("A role has two tasks for one path: make them one.")
    return tuple(found[:20])


def sound_merge(context: Context, answer: Answer) -> tuple[str, ...]:
    """A merge by regions changes nothing outside of them, and nothing speaks against what comes of it."""
    if context.merge is None or not isinstance(answer, Edits):
        return ()
    if len(answer.files) != 1 or answer.files[0].content is None:
        return ("A merge is the content of its one file.",)
    path, content, partial = answer.files[0].path, answer.files[0].content, context.merge.partial
    if refusal := partial.refusal(content):
        return (f"{path!r}: {refusal}.",)
    return tuple(f"{path!r}: {flaw}." for flaw in validate.objections(path, content, partial.sides))


STANDARD: tuple[Validator, ...] = (
    right_kind,
    within_task,
    not_emptied,
    not_too_large,
    python_parses,
    keeps_definitions,
    has_unittests,
    gives_reasons,
    plan_in_scope,
    sound_merge,
)
"""What every answer of a model or a program passes."""


def standard(options: Mapping[str, str]) -> tuple[Validator, ...]:
    """Those that a role's options leave: `keep_definitions = false` is for roles that clean up."""
    if options.get("keep_definitions", "true") == "true":
        return STANDARD
    return tuple(validator for validator in STANDARD if validator is not keeps_definitions)


def _written(context: Context, answer: Answer) -> list[tuple[str, bytes, bytes | None]]:
    """Path, new content and former content of each file that an answer writes."""
    if not isinstance(answer, Edits):
        return []
    base = writable(context)
    return [(f.path, f.content, base.get(f.path)) for f in answer.files if f.content is not None]


def _blank(content: bytes) -> bool:
    return not content.removeprefix(codecs.BOM_UTF8).strip()


def syntax_error(content: bytes) -> str:
    """Why the content is not Python, with the line; nothing if it is."""
    try:
        python_tree(content)
    except SyntaxError as error:
        return f"{error.msg} (line {error.lineno})"
    except NOT_PYTHON as error:
        return str(error) or type(error).__name__
    return ""


def _tests(content: bytes) -> bool:
    classes = (node for node in ast.walk(python_tree(content)) if isinstance(node, ast.ClassDef))
    functions = chain.from_iterable(node.body for node in classes)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(node, kinds) and node.name.startswith("test") for node in functions)
