"""What a pipeline tells of its work while it goes on."""

from typing import Protocol


class Telemetry(Protocol):
    """Whoever is told; called on the event loop, so it must be quick."""

    def stage(self, name: str, seconds: float) -> None:
        """A call went through a stage: decode, embed or search."""

    def batch(self, images: int, seconds: float) -> None:
        """The engine computed a batch; a lone image is decoded in that time too."""

    def rejected(self, reason: str) -> None:
        """A call was refused, for the reason of an error."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str, seconds: float) -> None:
        """Nothing."""

    def batch(self, images: int, seconds: float) -> None:
        """Nothing."""

    def rejected(self, reason: str) -> None:
        """Nothing."""


SILENT = Silent()
