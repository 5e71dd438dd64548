"""Bulk embedding by workers, an engine each, on one machine or several."""

from reidserve.embed.workers.cluster import LOCAL
from reidserve.embed.workers.embedder import ClusterEmbedder, embed_on_cluster

__all__ = ["LOCAL", "ClusterEmbedder", "embed_on_cluster"]
