"""The network: one ResNet whose variants are data. Training and export need torch; no server loads this."""

from reidserve.export.model.architecture import Architecture, StemPool, parse_architecture
from reidserve.export.model.network import Network, build_network

__all__ = ["Architecture", "Network", "StemPool", "build_network", "parse_architecture"]
