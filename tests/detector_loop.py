"""Drives the conflict detector on a log in memory: what it writes on the events topic comes back."""

from collections.abc import Iterable

import msgspec

from codeconvoy.schemas.codec import Codec
from codeconvoy.schemas.events import Event
from codeconvoy.schemas.file_history import FileHistory
from codeconvoy.schemas.job_facts import EventJudged, FactPayload, JobFact, Judgement
from codeconvoy.schemas.topics import Topics, file_key
from codeconvoy.workers.detector import Detector, DetectorState
from codeconvoy.workers.engine.bus import Outgoing, Record

CODEC = Codec.create()
MAX_RECORDS = 600
"""A log that grows beyond this feeds itself for ever."""


class DetectorLoop:
    """One partition of the events log, its detector, and what the jobs are told."""

    def __init__(self) -> None:
        self.topics = Topics()
        self.detector = Detector(CODEC, self.topics)
        self.log: list[Event] = []
        self.facts: list[tuple[str, FactPayload | Judgement]] = []
        """Job id and word, in order."""
        self.now = 0
        self._states: dict[str, DetectorState] = {}
        self._folded = 0

    def append(self, *events: Event) -> None:
        """Put events at the end of the log."""
        self.log.extend(events)

    def history(self, path: str, workspace: str = "w") -> FileHistory:
        """A file as the detector knows it."""
        return self._state(file_key(workspace, path)).history

    def forget(self, path: str, history: FileHistory, workspace: str = "w") -> None:
        """Put a history in the place of the one that the detector has."""
        key = file_key(workspace, path)
        self._states[key] = msgspec.structs.replace(self._states[key], history=history)

    def fold(self, records: int = MAX_RECORDS) -> int:
        """Let the detector read so many records, or up to the end. How many it was."""
        done = 0
        while done < records and self._folded < len(self.log):
            assert len(self.log) <= MAX_RECORDS, "the detector feeds itself for ever"
            event = self.log[self._folded]
            key = file_key(event.workspace, event.file_path)
            record = Record(self.topics.events, 0, self._folded, key, CODEC.encode(event))
            self._states[key], outputs = self.detector.step(self._state(key), record, self.now)
            self._folded += 1
            done += 1
            self._take(outputs)
        return done

    def fire_next_deadline(self) -> bool:
        """Let the clock reach the next deadline, and fold what comes of it. False where none is left."""
        waits = {key: self.detector.wait(state) for key, state in self._states.items()}
        when = min((wait for wait in waits.values() if wait is not None), default=None)
        if when is None:
            return False
        self.now = max(self.now, when)
        for key, wait in sorted(waits.items()):
            if wait is not None and wait <= self.now:
                self._take(self.detector.due(key, self._states[key], self.now))
        self.fold()
        return True

    def _state(self, key: str) -> DetectorState:
        return self._states.get(key) or self.detector.empty(key)

    def _take(self, outputs: Iterable[Outgoing]) -> None:
        for output in self.detector.together(list(outputs)):
            if output.topic == self.topics.events:
                event = CODEC.decode(output.value, Event)
                assert output.key == file_key(event.workspace, event.file_path)
                self.log.append(event)
            else:
                fact = CODEC.decode(output.value, JobFact)
                payload = fact.payload
                words = payload.judgements if isinstance(payload, EventJudged) else (payload,)
                self.facts.extend((fact.job_id, word) for word in words)
