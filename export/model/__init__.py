"""The network: one ResNet whose variants are data. Training and export need torch; no server loads this."""

from reidserve.export.model.architecture import Architecture, StemPool, parse_architecture
from reidserve.export.model.classifier import Classifier
from reidserve.export.model.network import Network, build_network, check_stripes

__all__ = ["Architecture", "Classifier", "Network", "StemPool", "build_network", "check_stripes", "parse_architecture"]
