"""How a gallery is re-ranked: the three numbers of k-reciprocal encoding, and what it asks of its data."""

from dataclasses import dataclass

from reidserve.embed import Embeddings
from reidserve.errors import QueryError


@dataclass(frozen=True, slots=True)
class Reranking:
    """The numbers of k-reciprocal encoding (Zhong et al., 2017), which gives them these names and values.

    Attributes:
        k1: neighbours of an image, itself left out, that may have it among theirs.
        k2: nearest images, itself counted, whose encodings are averaged into its own; 1 leaves each as it is.
        weight: the share of the plain distance in the final one, 0 to 1 (the paper's lambda).

    Raises:
        QueryError: k1 or k2 is less than 1, or the weight is not 0 to 1.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        for name in ("k1", "k2"):
            if getattr(self, name) < 1:
                raise QueryError(f"re-ranking: {name} must be at least 1, got {getattr(self, name)}")
        # Written so that NaN fails.
        if not 0 <= self.weight <= 1:
            raise QueryError(f"re-ranking: the weight must be 0 to 1, got {self.weight}")

    @property
    def half(self) -> int:
        """How many neighbours of a neighbour may be taken in with it: half of k1, halves to the even number."""
        return round(self.k1 / 2)


def check_embeddings(queries: Embeddings, gallery: Embeddings) -> None:
    """See that queries (Q, dim) and a gallery (G, dim) can be compared.

    Raises:
        QueryError: they are no two matrices of equal width.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise QueryError(
            "re-ranking needs queries (Q, dim) and a gallery (G, dim) of equal dim, "
            f"got {queries.shape} and {gallery.shape}"
        )
