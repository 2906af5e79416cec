"""A store that fails as it is told to: `failing:///folder` reads the folder."""

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

Fault = Callable[[bytes], bytes]
"""What a request's answer becomes; may raise, or wait."""


class FailingStore(LocalFileSystem):
    """Each request of a file named in `faults` takes its next fault; without one it is answered."""

    protocol = "failing"
    faults: ClassVar[dict[str, list[Fault]]] = {}
    """End of a path -> faults of the requests to come; the last one stays."""
    requests: ClassVar[list[tuple[str, int | None, int | None]]] = []
    """(path, start, end) of each request."""
    held = threading.Event()
    """Set to let the requests that wait go on."""

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        type(self).requests.append((path, start, end))
        with open(self._strip_protocol(path), "rb") as file:
            data = file.read()[start:end]
        for suffix, faults in self.faults.items():
            if path.endswith(suffix):
                return (faults.pop(0) if len(faults) > 1 else faults[0])(data)
        return data


def fine(data: bytes) -> bytes:
    """The right answer."""
    return data


def short(data: bytes) -> bytes:
    """All but the last byte."""
    return data[:-1]


def flipped(data: bytes) -> bytes:
    """As long, with another byte in the middle."""
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def broken(data: bytes) -> bytes:
    """A connection that ends."""
    raise ConnectionResetError("the connection was reset")


def refused(data: bytes) -> bytes:
    """Credentials that are not the store's."""
    raise PermissionError("The AWS Access Key Id you provided does not exist in our records.")


def stalled(data: bytes) -> bytes:
    """No answer until the test ends."""
    FailingStore.held.wait(60)
    return data


fsspec.register_implementation("failing", FailingStore)
