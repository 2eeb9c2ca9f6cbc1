"""A program as an agent: what it is told, what it may answer, and that it never outlives its task."""

import asyncio
import base64
import json
import re
import sys
import time
from pathlib import Path

import pytest

from codeconvoy.schemas.errors import AgentError
from codeconvoy.schemas.tasks import EditWork
from codeconvoy.workers.llm.command import MAX_OUTPUT_BYTES, CommandAgent
from codeconvoy.workers.roles.role import Answer, Context, Edits, FileEdit, Plan, Role, RoleKind, Vote
from tests import contexts

ROLE = Role(name="r", kind=RoleKind.EDIT, description="", provider="command", prompt="Be r.")


def agent(code: str) -> CommandAgent:
    return CommandAgent(ROLE, (sys.executable, "-c", code))


def work(code: str, context: Context | None = None) -> Answer:
    return asyncio.run(agent(code).work(context or contexts.edit()))


def saying(answer: object) -> str:
    return f"print({json.dumps(answer)!r})"


def alive(pid: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_it_reads_the_task_and_answers_edits() -> None:
    code = (
        "import json, sys\n"
        "task = json.load(sys.stdin)\n"
        "content = task['file']['content'].replace('1', '2')\n"
        "said = [task[name] for name in ('kind', 'prompt', 'may_write', 'feedback')]\n"
        "edits = [{'path': task['file']['path'], 'content': content}]\n"
        "print(json.dumps({'edits': edits, 'summary': json.dumps([*said, task['task']['goal']])}))\n"
    )
    answer = work(code, contexts.context(EditWork(feedback=("no",), also=("b.py",))))
    assert isinstance(answer, Edits)
    assert answer.files == (FileEdit("a.py", b"def one():\n    return 2\n"),)
    assert json.loads(answer.summary) == ["edit", "Be r.", ["a.py", "b.py"], ["no"], "improve it"]


def test_a_conflict_is_told_with_base_and_heads_and_bytes_as_base64() -> None:
    code = (
        "import json, sys\n"
        "task = json.load(sys.stdin)\n"
        "edit = {'path': 'a.py', 'content_base64': task['heads'][0]['content_base64']}\n"
        "assert task['kind'] == 'resolve' and task['base']['content'].startswith('def one')\n"
        "print(json.dumps({'edits': [edit]}))\n"
    )
    head = contexts.version("# é\n".encode("latin-1"), event="e2")
    answer = work(
        code, contexts.resolve(base=contexts.version(), heads=(head,), file=contexts.version(b"\xe9"))
    )
    assert isinstance(answer, Edits) and answer.files == (FileEdit("a.py", b"# \xe9\n"),)


MERGED = b"import os\nimport re\n\n\ndef one():\n    return 3\n\n\ndef two():\n    return 2\n"


def test_a_merger_is_told_the_regions_and_answers_them_in_any_form() -> None:
    code = (
        "import json, sys\n"
        "task = json.load(sys.stdin)\n"
        "(region,) = task['regions']\n"
        "assert task['kind'] == 'merge' and region['number'] == 1 and region['base'] == '    return 1\\n'\n"
        "assert region['sides'] == ['    return 1 + 0\\n', '    return int(1)\\n']\n"
        "assert task['intents'][1] == [{'role': 'typer', 'goal': 'type', 'summary': 'makes an int'}]\n"
        "assert region['before'].startswith('import os\\nimport re\\n')\n"
        "whole = region['before'] + '    return 3\\n' + region['after']\n"
    )
    for said in (
        "{'regions': [{'number': 1, 'content': '    return 3\\n'}]}",
        "{'edits': [{'path': 'a.py', 'content': whole}]}",
        "{'text': '<<<<<<< REGION 1\\n    return 3\\n>>>>>>> REGION 1\\n'}",
    ):
        answer = work(f"{code}print(json.dumps({said}))", contexts.merging())
        assert isinstance(answer, Edits) and answer.files == (FileEdit("a.py", MERGED),)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"regions": []}, "Region 1 is not answered"),
        ({"regions": [{"number": 1, "content": ""}, {"number": 1, "content": ""}]}, "answered twice"),
        ({"regions": [{"number": 1, "content": "    return ("}]}, "does not parse"),
        ({"edits": [{"path": "a.py", "content": "x = 1\n"}]}, "before the first conflicting region"),
        ({"edits": [{"path": "a.py", "delete": True}]}, "content of its one file"),
        ({"edits": []}, "content of its one file"),
        ({"text": "garbage"}, "Region 1 is not answered"),
    ],
)
def test_a_merger_gets_a_second_try_and_is_told_why(said: object, reason: str) -> None:
    good = {"regions": [{"number": 1, "content": "    return 3"}]}
    code = (
        "import json, sys\n"
        "task = json.load(sys.stdin)\n"
        f"told = any({reason!r} in flaw for flaw in task['feedback'])\n"
        f"print(json.dumps({good!r} if told else {said!r}))\n"
    )
    answer = work(code, contexts.merging())
    assert isinstance(answer, Edits) and answer.files == (FileEdit("a.py", MERGED),)
    with pytest.raises(AgentError, match=reason):
        work(saying(said), contexts.merging())


def test_a_merger_says_conflict() -> None:
    with pytest.raises(AgentError, match="region 1: no way"):
        work(saying({"regions": [{"number": 1, "conflict": "no way"}]}), contexts.merging())


def test_each_kind_of_answer() -> None:
    blocks = "a.py\n<<<<<<< SEARCH\n    return 1\n=======\n    return 2\n>>>>>>> REPLACE\n"
    answer = work(saying({"text": blocks}))
    assert isinstance(answer, Edits) and answer.files[0].content == b"def one():\n    return 2\n"
    deleted = work(saying({"edits": [{"path": "a.py", "delete": True}]}), contexts.edit(goal="delete a.py"))
    assert isinstance(deleted, Edits) and deleted.files == (FileEdit("a.py", None),)
    same = work(saying({"edits": [{"path": "a.py", "content": contexts.BASE.decode()}]}))
    assert isinstance(same, Edits) and same.files == ()
    vote = work(saying({"approved": False, "comments": ["slow"]}), contexts.review())
    assert vote == Vote(False, ("slow",))
    assert work(saying({"approved": True}), contexts.review()) == Vote(True)
    tasks = [{"role": "generator", "path": "b.py", "goal": "g"}]
    plan = work(saying({"tasks": tasks}), contexts.plan())
    assert isinstance(plan, Plan) and plan.tasks[0].path == "b.py"


def test_a_single_comment_is_a_list_of_one() -> None:
    slow = work(saying({"approved": False, "comments": "slow"}), contexts.review())
    assert slow == Vote(False, ("slow",))
    assert work(saying({"approved": True, "comments": " "}), contexts.review()) == Vote(True)
    with pytest.raises(AgentError, match="comments"):
        work(saying({"approved": True, "comments": {"a.py": "slow"}}), contexts.review())


DOCUMENTED: dict[str, list[Context]] = {
    "edits": [contexts.edit()],
    "text": [contexts.edit()],
    "regions": [contexts.merging()],
    "approved": [contexts.review()],
    "tasks": [contexts.plan()],
    "error": [contexts.edit(), contexts.review(), contexts.plan()],
}


def test_the_documented_answers_are_answers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
    [block] = [one for one in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if '"regions"' in one]
    examples = [json.loads(line) for line in block.splitlines() if line.startswith("{")]
    assert [next(iter(one)) for one in examples] == list(DOCUMENTED)
    for example in examples:
        for context in DOCUMENTED[next(iter(example))]:
            if "error" in example:
                with pytest.raises(AgentError, match=example["error"]):
                    work(saying(example), context)
            else:
                work(saying(example), context)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"edits": [{"path": "b.py", "content": "x"}]}, "'b.py' is not a file of this task"),
        ({"edits": [{"path": "a.py", "content": ""}]}, "would be blank"),
        ({"edits": [{"path": "a.py", "content": "def ("}]}, "does not parse"),
        ({"edits": [{"path": "a.py", "delete": True}]}, "no longer define one"),
        ({"edits": [{"path": "a.py"}]}, "needs one of"),
        ({"edits": [{"path": "a.py", "content": "x", "delete": True}]}, "needs one of"),
        ({"edits": [{"path": "a.py", "content_base64": "%"}]}, "content_base64"),
        ({"edits": [], "more": 1}, "unknown field `more`"),
        ({"text": "words"}, "neither a block"),
        ({"approved": True}, "must be edits"),
        ({}, "has none of"),
        ([], "no answer"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(answer: object, reason: str) -> None:
    with pytest.raises(AgentError, match=reason) as caught:
        work(saying(answer))
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("code", "reason", "retryable"),
    [
        ("import sys; sys.exit('it burns')", "exit status 1: it burns", False),
        ("import sys; print('busy', file=sys.stderr); sys.exit(75)", "exit status 75: busy", True),
        ("import os; os.kill(os.getpid(), 9)", "exit status -9", False),
        ("print('{')", "its output is no answer", False),
        (saying({"error": "no idea", "retryable": True}), "no idea", True),
        (f"print('x' * {MAX_OUTPUT_BYTES + 1})", "wrote over", False),
        ("import sys; sys.exit('x' * 99_999 + 'end')", "xend", False),
    ],
)
def test_failures_say_why(code: str, reason: str, retryable: bool) -> None:
    with pytest.raises(AgentError, match=reason) as caught:
        work(code)
    assert caught.value.retryable is retryable and len(str(caught.value)) < 3_000


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(AgentError, match="can't be started"):
        asyncio.run(CommandAgent(ROLE, ("/no/such/program",)).work(contexts.edit()))


def test_a_program_need_not_read_its_input() -> None:
    big = contexts.version(b"x = 1\n" * 60_000)
    answer = work("print('{\"edits\": []}')", contexts.edit(file=big))
    assert isinstance(answer, Edits) and answer.files == ()


SPAWNS = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "with open({path!r} + '.new', 'w') as file:\n"
    "    file.write(f'{{os.getpid()}} {{child.pid}}')\n"
    "os.rename({path!r} + '.new', {path!r})\n"
)


def started(path: Path) -> list[int]:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(pid) for pid in path.read_text().split()]


def test_cancelling_kills_the_program_and_what_it_started(tmp_path: Path) -> None:
    path = tmp_path / "pids"

    async def run() -> list[int]:
        code = SPAWNS.format(path=str(path)) + "time.sleep(600)\n"
        task = asyncio.create_task(agent(code).work(contexts.edit()))
        pids = await asyncio.to_thread(started, path)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pids

    for pid in asyncio.run(run()):
        wait_until_gone(pid)


def test_the_deadline_kills_it_too(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    code = SPAWNS.format(path=str(path)) + "time.sleep(600)\n"
    with pytest.raises(AgentError, match="within the task's 1 s"):
        work(code, contexts.edit(deadline_seconds=1))
    if path.exists():  # A slow machine may not have come so far: then there is nothing to kill.
        for pid in started(path):
            wait_until_gone(pid)


def test_what_it_leaves_behind_neither_delays_the_answer_nor_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    answer = work(SPAWNS.format(path=str(path)) + saying({"edits": []}))
    assert isinstance(answer, Edits)
    for pid in started(path):
        wait_until_gone(pid)


def test_base64_is_what_json_says() -> None:
    content = base64.b64encode(b"x = '\xe9'\n").decode()
    file = contexts.version("x = 'è'\n".encode("latin-1"), "a.py")
    answer = work(saying({"edits": [{"path": "a.py", "content_base64": content}]}), contexts.edit(file=file))
    assert isinstance(answer, Edits) and answer.files[0].content == b"x = '\xe9'\n"
