"""An import: entries in the order in which they are sent, until the server has acknowledged them."""

import threading
from collections.abc import Iterable, Iterator

from reidserve.client.galleries import Fault, Imported, NewEntry, write_entry
from reidserve.client.refusals import read_refusal
from reidserve.errors import QueryError, RequestError, UnavailableError
from reidserve.proto.reid.v1 import reid_pb2


class Import:
    """How far an import is. A stream that broke is begun again with what was not acknowledged.

    Entries are taken from their iterable by the threads that gRPC sends from; acknowledgements come on another one.
    An entry whose image cannot be read is left out, as one that the server refuses is. Where the entries themselves
    end in an error, what came before it is written first.

    Attributes:
        acknowledged: the number of the last entry that is durable, or was told as refused.
    """

    def __init__(self, entries: Iterable[NewEntry], gallery: str) -> None:
        self.acknowledged = 0
        self._entries = iter(entries)
        self._gallery = gallery
        # The thread of a broken stream may still wait for the next entry when another stream has begun.
        self._taking = threading.Lock()
        self._taken = 0
        self._pending: dict[int, reid_pb2.ImportEntriesRequest] = {}
        self._written = self._generation = 0
        self._faults: list[Fault] = []
        self._broken: BaseException | None = None
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether all there was has been sent and acknowledged."""
        return not self._pending and (self._broken is not None or (self._ended and self.acknowledged > 0))

    def requests(self) -> Iterator[reid_pb2.ImportEntriesRequest]:
        """What is to be sent from now on."""
        number = self.acknowledged + 1
        while self._has(number) and (message := self._pending.get(number)) is not None:
            yield message
            number += 1

    def take(self, response: reid_pb2.ImportEntriesResponse) -> None:
        """Take an acknowledgement."""
        last = min(response.acknowledged_sequence, self._taken)
        for number in range(self.acknowledged + 1, last + 1):
            self._pending.pop(number, None)
        self.acknowledged = max(self.acknowledged, last)
        self._generation = response.generation
        self._written += response.written
        self._faults += [Fault(fault.entry_id, read_refusal(fault.error)) for fault in response.faults]

    def check_whole(self) -> None:
        """See that all there was has been sent and acknowledged.

        Raises:
            UnavailableError: the server ended the stream before that.
        """
        if self._pending or not (self._ended or self._broken is not None):
            message = f"the server ended an import early, having acknowledged {self.acknowledged} entries"
            raise UnavailableError(message, code="UNAVAILABLE", reason="UNAVAILABLE")

    def result(self) -> Imported:
        """What it did; the error that the entries ended in is raised again."""
        if self._broken is not None:
            raise self._broken
        unsent = sum(not isinstance(fault.error, RequestError) for fault in self._faults)
        return Imported(self._taken + unsent, self._written, self._generation, tuple(self._faults))

    def _has(self, number: int) -> bool:
        """Take entries until there is one of this number; whether there is."""
        with self._taking:
            while self._taken < number and self._broken is None and not self._ended:
                try:
                    self._add(next(self._entries))
                except StopIteration:
                    self._ended = True
                except BaseException as error:  # noqa: BLE001  # whoever waits for the import gets it
                    self._broken = error
            return self._taken >= number

    def _add(self, entry: NewEntry) -> None:
        """Give an entry its number."""
        try:
            message = write_entry(entry)
        except (QueryError, OSError) as error:
            self._faults.append(Fault(entry.entry_id, error))
            return
        # Its number before its presence: whoever sees the number finds the message.
        number = self._taken + 1
        self._pending[number] = reid_pb2.ImportEntriesRequest(gallery=self._gallery, sequence=number, entry=message)
        self._taken = number
