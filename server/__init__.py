"""The gRPC server around embed and index."""

from reidserve.server.serving import Ready, Settings, serve

__all__ = ["Ready", "Settings", "serve"]
