"""The gRPC server around embed and index."""

from reidserve.server.serving import Ready, serve
from reidserve.server.settings import Settings

__all__ = ["Ready", "Settings", "serve"]
