"""Reads nothing, writes nothing: where the tests of a source file are written.

The place follows from the source's path alone, so that every fold of a job log, every tester and
every rerun name the same file.
"""

import hashlib
import re

_PLAIN = re.compile(r"[a-z0-9]+(?:/[a-z0-9]+)*\.py\Z")
"""Paths that stay apart when their slashes become underscores, on every file system."""
_PLAIN_MAX, _SLUG_MAX, _HASH_LENGTH = 120, 100, 12


def test_path_for(path: str, test_directory: str) -> str:
    """The path of the test file that covers `path`, another one for each path.

    `docutils/parsers/rst/states.py` in `tests/convoy` gives
    `tests/convoy/test_docutils_parsers_rst_states.py`. A path with other characters than lower-case
    letters and digits could give the name of another path: its name ends in a hash of the path.

    Args:
        path: the source file, normalised (`paths.normalise`).
        test_directory: where tests are put, normalised.
    """
    if _PLAIN.match(path) and len(path) <= _PLAIN_MAX:
        name = path.removesuffix(".py").replace("/", "_")
    else:
        slug = re.sub(r"[^a-z0-9]+", "_", path.removesuffix(".py").lower()).strip("_")
        digest = hashlib.sha256(path.encode()).hexdigest()[:_HASH_LENGTH]
        # A plain name holds no two underscores in a row, so this can't be one.
        name = f"{slug[:_SLUG_MAX]}__{digest}"
    return f"{test_directory}/test_{name}.py"


# A test module that imports it by name must not have it collected as a test.
test_path_for.__test__ = False  # type: ignore[attr-defined]
