"""Galleries that a Milvus server holds: Milvus nominates, we settle. Whoever has none does without pymilvus."""

from reidserve.errors import GalleryError

try:
    from reidserve.index.milvus.gallery import holds_gallery, make_rows, open_gallery, open_rows, switch_alias
except ModuleNotFoundError as error:
    if error.name != "pymilvus":
        raise
    raise GalleryError("galleries in Milvus need pymilvus: pip install 'reidserve[milvus]'") from error

__all__ = ["holds_gallery", "make_rows", "open_gallery", "open_rows", "switch_alias"]
