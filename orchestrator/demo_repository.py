"""Reads a wheel from the package index by pip, writes a git repository: what the demo works on."""

import re
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pygit2
from pygit2.enums import FileMode

from codeconvoy.schemas.errors import BadInput, Unavailable
from codeconvoy.schemas.paths import normalise

DOWNLOAD_SECONDS = 300.0
MAX_MEMBERS = 2_000
MAX_BYTES = 64 * 1024 * 1024
"""Of all members, unpacked."""
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_AUTHOR = pygit2.Signature("codeconvoy demo", "demo@codeconvoy.invalid", 1_577_836_800, 0)
"""The same name and time always: the commit has the same id on every machine."""


def download(requirements: Path, directory: Path) -> Path:
    """The wheel that a requirements file pins by hash; from the directory, if it is there already.

    Raises:
        BadInput: the file does not pin exactly one hash.
        Unavailable: pip could not get it, or got something else.
    """
    hashes = _HASH.findall(requirements.read_text())
    if len(hashes) != 1:
        raise BadInput(str(requirements), f"it pins {len(hashes)} hashes", "Pin one wheel")
    if (wheel := _wheel(directory, hashes[0])) is not None:
        return wheel
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    argv += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(directory)]
    try:
        done = subprocess.run(
            [*argv, "--requirement", str(requirements)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired as late:
        raise Unavailable(
            "package index", f"no answer in {late.timeout:.0f} s", "Check the network"
        ) from late
    wheel = _wheel(directory, hashes[0])
    if done.returncode or wheel is None:
        said = done.stdout.decode(errors="replace").strip()[-1_000:]
        raise Unavailable(
            "package index", said or "pip got another file", "Check the network, and pip's index"
        )
    return wheel


def _wheel(directory: Path, digest: str) -> Path | None:
    """The wheel with this hash."""
    wheels = directory.glob("*.whl")
    return next((path for path in wheels if sha256(path.read_bytes()).hexdigest() == digest), None)


def make_repository(wheel: Path, directory: Path) -> str:
    """Unpack a wheel into a new git repository with one commit on `main`; answers the commit's id.

    Raises:
        BadInput: a member's path is unsafe, or there is too much of them.
    """
    if directory.exists():
        shutil.rmtree(directory)
    repo = pygit2.init_repository(str(directory), initial_head="main")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
            reason = f"it has over {MAX_MEMBERS} files or {MAX_BYTES:,} bytes"
            raise BadInput(wheel.name, reason, "Choose a smaller package")
        for member in members:
            # Refuses what would leave the directory, and what git or a file system could be fooled by.
            path = normalise(member.filename, wheel.name)
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.read(member)
            target.write_bytes(content)
            repo.index.add(pygit2.IndexEntry(path, repo.create_blob(content), FileMode.BLOB))
    repo.index.write()
    message = f"Import {wheel.name}\n"
    return str(repo.create_commit("HEAD", _AUTHOR, _AUTHOR, message, repo.index.write_tree(), []))


def uncompilable(repository: Path, commit: str) -> list[str]:
    """Every Python file of a commit that does not compile, with the reason."""
    repo = pygit2.Repository(str(repository))
    found = []
    for path, content in _files(repo, repo[commit].peel(pygit2.Tree), ""):
        try:
            compile(content, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            found.append(f"{path}: {error}")
    return found


def _files(repo: pygit2.Repository, tree: pygit2.Tree, above: str) -> "list[tuple[str, bytes]]":
    found = []
    for entry in tree:
        path = f"{above}{entry.name}"
        if isinstance(entry, pygit2.Tree):
            found += _files(repo, entry, f"{path}/")
        elif isinstance(entry, pygit2.Blob) and path.endswith(".py"):
            found.append((path, entry.data))
    return found
