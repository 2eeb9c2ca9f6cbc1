"""Reads nothing, writes records and offsets in transactions: the Kafka bus's Producer.

How librdkafka's errors map to what a caller may do:

- fatal (`_FENCED`: a newer producer has this transactional id): Fenced. The client is of no use any
  more. When it comes from the commit itself, the transaction may have been decided by the successor;
  its offsets on the broker say which, and they are what a restart reads.
- `txn_requires_abort`: aborted, then Aborted; Refused where it is a record that the broker takes in no
  transaction (`_REFUSALS`). That holds for records that it could not be given within their time, for a
  transaction that timed out at the broker (`INVALID_PRODUCER_EPOCH`, the abort takes a new epoch) and
  for a stale group token (`ILLEGAL_GENERATION`, `UNKNOWN_MEMBER_ID`, `STALE_MEMBER_EPOCH`): the
  producer is well, the member has to poll, to drop what is not its own any more, and to come again
  with a fresh token. A member that is really out then gets Fenced from `group_token`.
- any other before the commit (a partition that does not exist): the same.
- retriable (a broken connection, a time-out): the same call is made again; librdkafka resumes it. So a
  commit is never reported before its outcome is known.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from codeconvoy.schemas.errors import Aborted, BusError, Refused, Unavailable
from codeconvoy.workers.engine.bus import Committed, GroupToken, Outgoing, TopicPartition
from codeconvoy.workers.engine.kafka_client import (
    Complaints,
    Settings,
    as_bus_error,
    as_offsets,
    persist,
    run_on,
)
from codeconvoy.workers.engine.kafka_consumer import MemberToken
from codeconvoy.workers.engine.kafka_hanging import FILLER, HangingFinder, Last, Open, Outcome
from codeconvoy.workers.engine.limits import check_limits, key_bytes

logger = logging.getLogger(__name__)

_ANY_PARTITION = -1
_REFUSALS = (
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
)
"""What the broker says of a record that it will never take as it is."""
_CALL_SECONDS = 5.0
_RESOLVE_SECONDS = 90.0
"""For so long a broker may be away in the middle of a transaction."""
_INIT_SECONDS = 30.0
"""The transaction coordinator of a fresh broker first creates its topic."""
_SURE_SECONDS = 2.0
"""No broker is killed and back so soon: what was aborted within that was so everywhere, or will be."""
_LOOKS = 4
"""For hanging transactions, while one is not yet taken for that."""


def filler(at: TopicPartition) -> Outgoing:
    """A record that says nothing."""
    return Outgoing(at.topic, "", b"", partition=at.partition, headers={FILLER: b"1"})


class KafkaProducer:
    """The one owner of a transactional id. Its blocking calls run on a thread of its own."""

    def __init__(self, settings: Settings, *, embedded: bool, last: Last | None = None) -> None:
        """`last` is the last transaction of this id, as far as this process knows."""
        self._settings, self._embedded = settings, embedded
        self._last = last or Last()
        self._complaints = Complaints()
        self._undelivered: set[int] = set()
        """Why records of this transaction could not be written: what it fails with may say less."""
        reports: Settings = {"on_delivery": self._on_delivery, "delivery.report.only.error": True}
        self._producer = Producer({**settings, **reports, "error_cb": self._complaints})
        name = f"kafka-{settings['transactional.id']}"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._finder: HangingFinder | None = None
        self._mending: asyncio.Task[None] | None = None
        self.is_closed = False
        self._broken: BusError | None = None
        """Set when it was fenced, or left a transaction whose outcome it could not learn."""

    async def start(self) -> None:
        """Fence older producers of the same transactional id.

        Raises:
            Unavailable: the broker can't be reached, or refuses.
        """
        await self._on_thread(self._init)

    async def mend(self, finder: HangingFinder) -> None:
        """End what hangs of this transactional id, now and until it is closed. The finder is closed with it.

        Raises:
            BusError: this producer is of no use.
        """
        self._finder = finder
        await self._on_thread(partial(self._end_last, finder))
        self._mending = asyncio.create_task(self._mend(finder))

    def check(self) -> None:
        """See `Producer.check`: what ends what hangs may have been fenced."""
        if self._broken is not None:
            raise type(self._broken)(str(self._broken))

    async def transaction(
        self,
        outputs: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed] | None = None,
        group: str = "",
        token: GroupToken | None = None,
    ) -> None:
        """See `Producer.transaction`. A caller that is cancelled waits for the outcome first.

        Raises:
            BusError: besides what the protocol says: the outcome could not be learnt within
                90 s. Only a new producer of the same id, and the group's offsets, can tell.
        """
        check_limits(outputs, offsets)
        if not offsets:
            await self._on_thread(lambda: self._transact(outputs, [], b""))
            return
        if not isinstance(token, MemberToken):
            raise BusError("offsets need the group token of a consumer of the Kafka bus")
        await self._on_thread(lambda: self._transact(outputs, as_offsets(offsets), token.metadata))
        if self._embedded:  # it forgets offsets that were sent in a transaction
            try:
                await token.consumer.commit(offsets)
            except Aborted as refused:  # the outputs are there: to send them again would double them
                raise BusError(f"its outputs are committed, its offsets are not: {refused}") from refused

    async def close(self) -> None:
        """See `Producer.close`."""
        if not self.is_closed:
            self.is_closed = True
            if self._mending is not None:
                self._mending.cancel()
                await asyncio.wait([self._mending])
            if self._finder is not None:
                await self._on_thread(self._finder.close)
            await self._on_thread(self._close)
            self._thread.shutdown(wait=False)

    async def _on_thread(self, work: Callable[[], object]) -> None:
        await run_on(self._thread, work)

    async def _mend(self, finder: HangingFinder) -> None:
        """Look for what hangs, for ever. Another's is none the worse, and ended by its own producer."""
        clock = asyncio.get_running_loop().time
        done: set[tuple[TopicPartition, int]] = set()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-hanging") as thread:
            while True:
                await asyncio.sleep(finder.patience / _LOOKS)
                try:
                    found = await run_on(thread, lambda: finder.hanging(clock()))
                    new = {at: wait for at, wait in found.partitions.items() if (at, wait.offset) not in done}
                    if new or found.offsets:
                        what = [*map(str, new), *([f"offsets of {finder.group}"] if found.offsets else [])]
                        logger.warning("open for too long: %s", ", ".join(what))
                        await self._on_thread(partial(self._end, finder, Open(new, found.offsets)))
                    done = {(at, wait.offset) for at, wait in found.partitions.items()}
                except (BusError, Unavailable) as error:
                    logger.warning("what hangs is looked for later: %s", error)

    # All below runs on the producer's thread.

    def _init(self) -> None:
        deadline = time.monotonic() + _INIT_SECONDS
        while True:
            try:
                self._producer.init_transactions(_CALL_SECONDS)
                return
            except KafkaException as error:
                self._producer.poll(0.0)  # serves error_cb, which has the reason
                patience = not self._complaints.reason and time.monotonic() < deadline
                if not (error.args[0].retriable() and patience):
                    self._give_up(error.args[0])
                    raise self._complaints.unavailable(self._settings, error.args[0].str()) from error

    def _transact(self, outputs: Sequence[Outgoing], offsets: list[KafkaPartition], metadata: bytes) -> None:
        self.check()  # a transaction that is not even begun is not the last
        if self._last.outcome is Outcome.UNKNOWN and self._finder is not None:
            self._decide(self._finder)
        self._last.outcome, self._last.offsets, began = Outcome.UNKNOWN, offsets, time.monotonic()
        try:
            self._begin(outputs, offsets, metadata)
            self._commit()
        except Aborted:
            self._last.offsets = ()  # they are not there, for sure
            if time.monotonic() - began < _SURE_SECONDS:
                self._last.outcome = Outcome.ABORTED
            raise
        self._last.outcome = Outcome.COMMITTED

    def _begin(self, outputs: Sequence[Outgoing], offsets: list[KafkaPartition], metadata: bytes) -> None:
        """A transaction, up to its end."""
        self._undelivered.clear()
        try:
            self._producer.begin_transaction()
            for output in outputs:
                self._produce(output)
            if offsets:
                persist(
                    lambda: self._producer.send_offsets_to_transaction(offsets, metadata, _CALL_SECONDS),
                    _RESOLVE_SECONDS,
                )
        except KafkaException as error:
            raise self._abort(error.args[0]) from error

    def _commit(self) -> None:
        try:
            # Flushes first; a record that could not be delivered makes it abortable.
            persist(lambda: self._producer.commit_transaction(_CALL_SECONDS), _RESOLVE_SECONDS)
        except KafkaException as error:
            if not error.args[0].txn_requires_abort():
                raise self._give_up(error.args[0]) from error
            raise self._abort(error.args[0]) from error

    def _end_last(self, finder: HangingFinder) -> None:
        """End what is open of the last transaction, before anything is done. If it was committed, only its
        offsets: whoever needs them would start anew before it is sure that they hang."""
        if self._last.outcome is not Outcome.COMMITTED:
            self._decide(finder)
        elif (found := finder.open(time.monotonic())).offsets:
            self._redo(finder, Open({}, found.offsets))

    def _end(self, finder: HangingFinder, hanging: Open) -> None:
        """End what may be of the last transaction, and hangs."""
        match self._last.outcome:
            case Outcome.COMMITTED:
                self._redo(finder, hanging)
            case Outcome.ABORTED | Outcome.UNKNOWN:
                self._decide(finder)

    def _decide(self, finder: HangingFinder) -> None:
        """End a transaction whose outcome is not known, if anything is open: was it committed, its offsets
        are there.

        Raises:
            Aborted: whether anything is can't be seen now.
        """
        try:
            found = finder.open(time.monotonic())
            is_commit = found and not found.offsets and self._last.offsets and finder.has(self._last.offsets)
        except Unavailable as away:
            raise Aborted(str(away)) from away
        if is_commit:
            self._redo(finder, found)
        else:
            self._abort_fillers(finder, found)

    def _abort_fillers(self, finder: HangingFinder, found: Open) -> None:
        """End the last transaction by one that aborts."""
        if found:
            self.check()
            self._begin(*self._fillers(finder, found))
            self._producer.flush(_CALL_SECONDS)  # what the broker never saw would not be ended
            try:
                persist(lambda: self._producer.abort_transaction(_CALL_SECONDS), _RESOLVE_SECONDS)
            except KafkaException as error:
                raise self._give_up(error.args[0]) from error
        self._last.outcome = Outcome.NONE

    def _redo(self, finder: HangingFinder, hanging: Open) -> None:
        """End the last transaction, which was committed, by one that commits."""
        self._last.outcome = Outcome.COMMITTED
        try:
            self._transact(*self._fillers(finder, hanging))
        finally:
            self._last.outcome = Outcome.COMMITTED

    def _fillers(
        self, finder: HangingFinder, found: Open
    ) -> tuple[list[Outgoing], list[KafkaPartition], bytes]:
        """A transaction that says nothing, in these places."""
        fillers = list(map(filler, found.partitions))
        return (fillers, [finder.spare], finder.nobody) if found.offsets else (fillers, [], b"")

    def _produce(self, output: Outgoing) -> None:
        partition = _ANY_PARTITION if output.partition is None else output.partition
        while True:
            try:
                self._producer.produce(
                    output.topic,
                    output.value,
                    key_bytes(output.key),
                    partition,
                    headers=list(output.headers.items()),
                )
                return
            except BufferError:  # the client's queue is full: wait until some of it is delivered
                self._producer.poll(0.05)

    def _close(self) -> None:
        # A broken client has a transaction that it can't end: closing it would only complain.
        if self._broken is None:
            self._producer.close()

    def _abort(self, cause: KafkaError) -> Aborted:
        """Abort what was begun. The error to raise."""
        if cause.fatal() or cause.code() == KafkaError._FATAL:
            raise self._give_up(cause)
        try:
            persist(lambda: self._producer.abort_transaction(_CALL_SECONDS), _RESOLVE_SECONDS)
        except KafkaException as error:
            raise self._give_up(error.args[0]) from error
        is_refused = cause.code() in _REFUSALS or not self._undelivered.isdisjoint(_REFUSALS)
        return (Refused if is_refused else Aborted)(cause.str())

    def _on_delivery(self, error: KafkaError | None, message: object) -> None:
        if error is not None:
            self._undelivered.add(error.code())

    def _give_up(self, problem: KafkaError) -> BusError:
        self._broken = as_bus_error(problem)
        return self._broken
