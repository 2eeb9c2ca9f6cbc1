"""Reads its argument, sets limits on itself and becomes the command; imports nothing of codeconvoy.

    python -I -S launch_limited.py '{"groups": ..., "rlimits": ..., "report": FD}' COMMAND...

A process of its own does this, because what runs between fork and exec in a process that has
threads (`preexec_fn`) may deadlock. Which limits hold is written to the descriptor `report`, as a
JSON list of their names.
"""

import json
import os
import resource
import signal
import sys


def main(argv: list[str]) -> None:
    """Set the limits, report, exec. Exits with 127 where the command can't be started."""
    plan, command = json.loads(argv[1]), argv[2:]
    held: list[str] = []
    for limits, procs in plan["groups"]:
        try:
            with open(procs, "w") as file:
                file.write(str(os.getpid()))
            held += limits
        except OSError:  # the report lacks them
            continue
    for limit, number, value in plan["rlimits"]:
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            if limit not in held:
                resource.setrlimit(number, (value, value))
                held.append(limit)
        except (OSError, ValueError):  # the report lacks it
            continue
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would hand that on
    os.write(plan["report"], json.dumps(held).encode())
    os.close(plan["report"])
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv)
