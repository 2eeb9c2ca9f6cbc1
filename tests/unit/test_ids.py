"""Identifiers: they are what every other implementation of UUIDv5 makes of the same parts."""

import uuid

from codeconvoy.schemas import ids
from codeconvoy.schemas.events import EventType


def test_an_id_is_a_uuid_of_version_5() -> None:
    for parts in (("event", "t", 1, "src/a.py", EventType.CODE_MODIFIED, 0), ("é", ""), tuple(range(50))):
        name = "\x1f".join(str(part) for part in parts)
        assert ids.derived(*parts) == str(uuid.uuid5(ids.NAMESPACE, name))


def test_ids_do_not_change() -> None:
    """They are on logs that are kept for ever."""
    assert ids.task_id("job", "edit", "generator", "src/a.py") == "dc4b6678-516b-5733-9351-a0a12726882a"
    assert ids.event_id("t", 1, "src/a.py", EventType.CODE_MODIFIED) == "9aff543c-4c28-5bae-b729-ecf998a9b7e1"
