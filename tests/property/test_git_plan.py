"""Writes temporary repositories: whatever a fold has seen, its branch is what readers see."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pygit2
from hypothesis import given
from hypothesis import strategies as st

from codeconvoy.schemas.events import (
    CodeModified,
    ConflictResolved,
    Event,
    EventType,
    FileImported,
    Strategy,
)
from codeconvoy.schemas.file_fold import fold
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.hunks import make_patch
from codeconvoy.workers.git.plan import plan_commits
from codeconvoy.workers.git.publish import write_branch
from codeconvoy.workers.git.source import Local, Source
from codeconvoy.workers.git.trailers import commits_between, of_commit

PATHS = ("a", "d/b")
CONTENT = st.one_of(st.none(), st.binary(max_size=4))


def event(history: FileHistory, parents: tuple[str, ...], content: bytes | None, kind: EventType) -> Event:
    base = history.edit(parents[0]) if parents else None
    patch = make_patch(base.content if base else None, content)
    payload: CodeModified | ConflictResolved | FileImported
    if kind is EventType.CONFLICT_RESOLVED:
        payload = ConflictResolved(patch=patch, conflict_id="c", strategy=Strategy.THREE_WAY)
    elif kind is EventType.FILE_IMPORTED:
        payload = FileImported(patch=patch, commit="")
    else:
        payload = CodeModified(patch=patch)
    return Event(
        event_id=f"{history.path}-{history.next_seq:03}",
        event_type=kind,
        workspace="w",
        file_path=history.path,
        job_id="j",
        task_id="t",
        round=1,
        agent_id="a",
        role="generator",
        timestamp=history.next_seq,
        parent_event_ids=parents,
        payload=payload,
    )


@st.composite
def folded(draw: st.DrawFn, path: str, content: bytes) -> FileHistory:
    """A history that began with an import of the content: edits from any live edit, and merges."""
    history = FileHistory(workspace="w", path=path)
    history, _ = fold(history, event(history, (), content, EventType.FILE_IMPORTED))
    for _ in range(draw(st.integers(0, 12))):
        if history.forked and draw(st.booleans()):
            count = draw(st.integers(2, len(history.heads)))
            parents = tuple(sorted(draw(st.permutations(history.heads))[:count]))
            kind = EventType.CONFLICT_RESOLVED
        else:
            live = [key for key, entry in history.entries.items() if entry.edit and entry.edit.live]
            parents, kind = (draw(st.sampled_from(live)),), EventType.CODE_MODIFIED
        history, _ = fold(history, event(history, parents, draw(CONTENT), kind))
    return history


@given(st.data())
def test_the_branch_is_what_readers_see_and_names_everything_that_led_to_it(data: st.DataObject) -> None:
    imported = {path: path.encode() for path in PATHS}
    histories = {path: data.draw(folded(path, content)) for path, content in imported.items()}
    imports = {path: f"{path}-000" for path in PATHS}
    commits = plan_commits(histories, imports)
    assert commits == plan_commits(histories, imports)
    with TemporaryDirectory() as directory:
        repo = pygit2.init_repository(directory, bare=True)
        base = base_commit(repo, imported)
        source = Source(repo, base, Local(Path(directory)))
        written = write_branch(source, base, commits, "result")
        assert write_branch(source, base, commits, "result") == written
        tree = repo[written.commit].peel(pygit2.Tree)
        named: dict[str, int] = {}
        for place, found in enumerate(commits_between(repo, base, written.commit)):
            trailers = of_commit(found)
            assert trailers is not None
            for edit in trailers.edits:
                # No edit is in two commits.
                assert named.setdefault(edit, place) == place
        for history in histories.values():
            check_file(tree, history, named)


def base_commit(repo: pygit2.Repository, files: dict[str, bytes]) -> str:
    index = pygit2.Index()
    for path, content in files.items():
        index.add(pygit2.IndexEntry(path, repo.create_blob(content), pygit2.enums.FileMode.BLOB))
    me = pygit2.Signature("me", "me@example.org", 0, 0)
    return str(repo.create_commit("refs/heads/main", me, me, "base", index.write_tree(repo), []))


def check_file(tree: pygit2.Tree, history: FileHistory, named: dict[str, int]) -> None:
    visible = history.edit(history.visible)
    assert visible is not None
    if visible.content is None:
        assert history.path not in tree
    else:
        held = tree[history.path]
        assert isinstance(held, pygit2.Blob)
        assert held.data == visible.content
    reached = history.ancestors((history.visible,)) - {f"{history.path}-000"}
    changed = any(key.startswith(f"{history.path}-") for key in named)
    for edit in reached:
        # Edits before the first change of content gave what the ref holds already.
        if changed and edit in named:
            parents = history.entries[edit].edit
            assert parents is not None
            assert all(named.get(parent, -1) <= named[edit] for parent in parents.parents)
    shown = [e for e in history.entries.values() if e.edit and e.edit.shown and e.event_id in reached]
    first = next((i for i, e in enumerate(shown) if e.edit and e.edit.content != history.path.encode()), None)
    if first is not None:
        later = reached - history.ancestors(e.event_id for e in shown[:first])
        assert later <= named.keys()
