"""The wall around tests that agents wrote, tried with what hostile ones would do."""

import asyncio
import os
import resource
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from codeconvoy.workers.roles import cgroups, sandbox
from codeconvoy.workers.roles.sandbox import Limits, Outcome

MIB = 1024**2


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    (directory / "pkg").mkdir(parents=True)
    (directory / "pkg" / "mod.py").write_text("VALUE = 41\n")
    return directory


@pytest.fixture(params=["bubblewrap", "unsandboxed"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to run a command."""
    if request.param == "unsandboxed":
        monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    yield request.param


def run(command: Sequence[str] | str, checkout: Path, limits: Limits = Limits()) -> Outcome:
    return asyncio.run(sandbox.run(command, checkout, limits, unsandboxed=True))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def running(marker: str) -> bool:
    """True while a process has the marker among its arguments."""
    return any(marker in (one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))


def gone(marker: str) -> bool:
    """Poll until nothing with the marker runs."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not running(marker):
            return True
        time.sleep(0.02)
    return False


def test_the_interpreter_works_and_imports_from_the_checkout(checkout: Path, either: str) -> None:
    outcome = run(python("import ssl, sqlite3, pkg.mod; print(pkg.mod.VALUE)"), checkout)
    assert (outcome.exit_code, outcome.output_tail, outcome.sandbox) == (0, b"41\n", either)
    assert not outcome.timed_out


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("nosuchprogram", 127)])
def test_exit_codes_pass_through(checkout: Path, either: str, command: str, code: int) -> None:
    assert run(command, checkout).exit_code == code


def test_signals_are_as_a_shell_expects_them(checkout: Path, either: str) -> None:
    assert run("yes | head -1; true", checkout).output_tail == b"y\n"  # `yes` is ended by SIGPIPE


def test_the_command_works_in_the_checkout_itself(checkout: Path, either: str) -> None:
    outcome = run("echo x > new && cat new pkg/mod.py > both", checkout)
    assert outcome.exit_code == 0
    assert (checkout / "both").read_bytes() == b"x\n" + (checkout / "pkg/mod.py").read_bytes()


def test_network_is_unreachable(checkout: Path) -> None:
    listener = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1])"
    assert run(python(listener), checkout).exit_code == 0  # its own loopback is there
    for address in (("1.1.1.1", 53), ("169.254.169.254", 80)):
        outcome = run(python(f"import socket; socket.create_connection({address}, 5)"), checkout)
        assert b"Network is unreachable" in outcome.output_tail


def test_a_server_of_the_host_is_unreachable(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        code = f"import socket; socket.create_connection({address}, 5)"
        assert b"Connection refused" in run(python(code), checkout).output_tail


def test_files_and_environment_of_the_host_are_hidden(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    monkeypatch.setenv("API_KEY", "hunter2")
    look = f"cat {secret}; cat /etc/shadow /etc/passwd; cat /proc/*/environ; env; ls -A $HOME /home"
    outcome = run(look, checkout)
    assert b"hunter2" not in outcome.output_tail
    assert b"root:" not in outcome.output_tail
    assert b"API_KEY" not in outcome.output_tail
    assert b"PYTHONHASHSEED" in outcome.output_tail  # /proc was read


def test_the_environment_is_clean_without_the_wall_too(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, either: str
) -> None:
    monkeypatch.setenv("API_KEY", "hunter2")
    assert b"hunter2" not in run("env", checkout).output_tail


def test_only_the_checkout_and_tmp_are_writable(checkout: Path) -> None:
    outcome = run(
        "for d in / /usr /dev /etc /proc; do touch $d/x && echo wrote $d; done; touch /tmp/x x", checkout
    )
    assert b"wrote" not in outcome.output_tail
    assert outcome.exit_code == 0


def test_processes_are_bounded(checkout: Path) -> None:
    code = (
        "import os, time\n"
        "made = 0\n"
        "for _ in range(300):\n"
        "    try: pid = os.fork()\n"
        "    except OSError: break\n"
        "    if pid == 0: time.sleep(60); os._exit(0)\n"
        "    made += 1\n"
        "print(made)"
    )
    outcome = run(python(code), checkout, Limits(processes=20, wall_seconds=30))
    assert outcome.unset_limits == ()
    assert 10 <= int(outcome.output_tail) <= 24


def test_a_fork_bomb_ends(checkout: Path) -> None:
    bomb = "import os, sys\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    outcome = run([*python(bomb), "fork-bomb-marker"], checkout, Limits(processes=30, wall_seconds=2))
    assert outcome.timed_out
    assert gone("fork-bomb-marker")


def test_memory_is_bounded_for_all_processes_together(checkout: Path) -> None:
    code = (
        "import os, time\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0: x = bytearray(60 * 2**20); time.sleep(20); os._exit(0)\n"
        "print(os.wait()[1] != 0)"
    )
    outcome = run(python(code), checkout, Limits(memory_bytes=150 * MIB, wall_seconds=60))
    assert outcome.unset_limits == ()
    assert outcome.exit_code == 137 or outcome.output_tail == b"True\n"


def test_memory_is_bounded(checkout: Path, either: str) -> None:
    outcome = run(
        python("x = bytearray(400 * 2**20); print('got it')"), checkout, Limits(memory_bytes=150 * MIB)
    )
    assert outcome.exit_code != 0
    assert b"got it" not in outcome.output_tail


def test_files_in_memory_are_bounded_too(checkout: Path) -> None:
    limits = Limits(memory_bytes=50 * MIB, file_bytes=1024 * MIB)
    assert run("head -c 200000000 /dev/zero > /tmp/big && echo got it", checkout, limits).exit_code != 0


def test_file_size_and_cpu_time_are_bounded(checkout: Path, either: str) -> None:
    outcome = run("head -c 3000000 /dev/zero > big; stat -c %s big", checkout, Limits(file_bytes=1000_000))
    assert b"1000000" in outcome.output_tail
    outcome = run("while :; do :; done", checkout, Limits(cpu_seconds=1, wall_seconds=60))
    assert outcome.exit_code == 137
    assert not outcome.timed_out


def test_of_endless_output_the_end_is_kept(checkout: Path, either: str) -> None:
    outcome = run("yes; true", checkout, Limits(wall_seconds=1, output_bytes=1000))
    assert outcome.timed_out
    assert len(outcome.output_tail) == 1000
    assert run("yes | head -100000; echo the end", checkout).output_tail.endswith(b"y\nthe end\n")


@pytest.mark.parametrize(
    "escape", ["sleep {m}", "(setsid sleep {m} &) ; sleep {m}", "trap '' TERM; sleep {m}"]
)
def test_the_time_limit_kills_all_descendants(checkout: Path, either: str, escape: str) -> None:
    marker = f"1234.{os.getpid()}{abs(hash((either, escape))) % 10**6}"
    outcome = run(escape.format(m=marker), checkout, Limits(wall_seconds=0.5))
    assert outcome.timed_out
    assert outcome.exit_code == 137
    assert gone(marker)


def test_what_is_left_in_the_background_is_killed(checkout: Path, either: str) -> None:
    marker = f"2345.{os.getpid()}{either == 'bubblewrap':d}"
    outcome = run(f"sleep {marker} > /dev/null 2>&1 & echo done", checkout, Limits(wall_seconds=60))
    assert outcome.output_tail == b"done\n"
    assert gone(marker)


def test_cancelling_kills_all_descendants(checkout: Path, either: str) -> None:
    marker = f"3456.{os.getpid()}{either == 'bubblewrap':d}"

    async def cancelled() -> None:
        task = asyncio.create_task(sandbox.run(f"sleep {marker}", checkout, Limits(), unsandboxed=True))
        while not await asyncio.to_thread(running, marker):
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert gone(marker)


def test_without_bubblewrap_nothing_runs_unless_allowed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: None)
    outcome = asyncio.run(sandbox.run(f"touch {tmp_path}/ran", checkout, Limits()))
    assert (outcome.exit_code, outcome.sandbox) == (-1, "none")
    assert not (tmp_path / "ran").exists()
    assert run(f"touch {tmp_path}/ran", checkout).sandbox == "unsandboxed"
    assert (tmp_path / "ran").exists()


def test_a_bubblewrap_that_may_not_run_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho 'Creating new namespace failed' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert sandbox.bubblewrap.__wrapped__() is None


def test_limits_that_need_a_cgroup_are_named_where_there_is_none(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, either: str
) -> None:
    monkeypatch.setattr(cgroups, "create", lambda memory_bytes, processes: ())
    outcome = run(python("x = bytearray(400 * 2**20)"), checkout, Limits(memory_bytes=200 * MIB))
    assert outcome.exit_code == 1  # one process can't have it all the same
    assert b"MemoryError" in outcome.output_tail
    assert outcome.unset_limits == (("memory", "processes") if os.geteuid() == 0 else ("memory",))


def test_nothing_is_left_behind(checkout: Path, either: str) -> None:
    made: list[cgroups.Group] = []
    create = cgroups.create

    def noted(memory_bytes: int, processes: int) -> tuple[cgroups.Group, ...]:
        made.extend(create(memory_bytes, processes))
        return tuple(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cgroups, "create", noted)
        descriptors = len(os.listdir("/proc/self/fd"))
        run("(setsid sleep 99 &) ; sleep 99", checkout, Limits(wall_seconds=0.3))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not any(group.path.exists() for group in made)


def test_the_parent_keeps_its_own_limits(checkout: Path) -> None:
    before = [resource.getrlimit(number) for number in (resource.RLIMIT_AS, resource.RLIMIT_NPROC)]
    run("true", checkout)
    assert [resource.getrlimit(number) for number in (resource.RLIMIT_AS, resource.RLIMIT_NPROC)] == before


def test_homes_of_version_1_below_a_mount_root() -> None:
    cgroup = "8:pids:/docker/ab/x\n4:memory:/docker/ab\n3:cpu,cpuacct:/\n0::/\n"
    mountinfo = (
        "35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "39 31 0:36 /docker/ab /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n"
        "40 31 0:37 / /proc rw - proc proc rw\n"
    )
    assert cgroups.homes(cgroup, mountinfo) == {
        "memory": Path("/sys/fs/cgroup/memory"),
        "pids": Path("/sys/fs/cgroup/pids/x"),
    }


def test_home_of_version_2() -> None:
    mountinfo = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    home = Path("/sys/fs/cgroup/user.slice/a.scope")
    assert cgroups.homes("0::/user.slice/a.scope\n", mountinfo) == {"": home}
    assert cgroups.homes("0::/../other\n", mountinfo) == {}
    assert cgroups.homes("", "") == {}


def test_a_cgroup_that_may_not_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "mountinfo").write_text(f"30 23 0:26 / {tmp_path}/fs rw - cgroup2 cgroup2 rw\n")
    assert cgroups.create(MIB, 5, tmp_path) == ()  # nothing is mounted there
    (tmp_path / "fs" / "a" / "b").mkdir(parents=True)
    assert cgroups.create(MIB, 5, tmp_path) == ()  # no controllers there
    assert list((tmp_path / "fs" / "a").iterdir()) == [tmp_path / "fs" / "a" / "b"]


def test_what_a_group_lists_and_hides_is_not_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = cgroups.Group(("memory",), tmp_path)
    group.procs.write_text("0\n41\n0\n42\n")
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    group.kill()
    assert sorted(killed) == [41, 42]
