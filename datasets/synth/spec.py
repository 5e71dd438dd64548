"""What is asked of a synthetic dataset, and what was made of it."""

from dataclasses import dataclass
from typing import Literal, get_args

from reidserve.errors import DatasetError

Kind = Literal["person", "vehicle"]
Domain = Literal["a", "b"]

MOST_IDENTITIES = 4999
"""Market names have four digits for the pid: train takes the odd ones, test the even ones, 0000 the distractors."""
MOST_CAMERAS = 9
"""Market names have one digit for the camera."""
MOST_OTHERS = 20_000
"""Junk and distractors are told apart by their frame, which has six digits."""


@dataclass(frozen=True, slots=True)
class SynthSpec:
    """A synthetic dataset: the same spec gives the same bytes, and one of more identities or pictures keeps them.

    Attributes:
        kind: what is photographed, "person" or "vehicle".
        domain: the world it is photographed in; "a" and "b" share no palette, body, scene or light.
        train_identities: identities in bounding_box_train.
        test_identities: identities in query and bounding_box_test, none of them in train.
        cameras: cameras, each of which sees every identity.
        images_per_camera: pictures of an identity by a camera; of a test identity the first is a query.
        junk: pictures named -1 in bounding_box_test, boxes that hardly hold anything.
        distractors: pictures named 0000 in bounding_box_test, strangers that nobody asks for.
        seed: at least 0; another seed is another world of the same kind.
    """

    kind: Kind = "person"
    domain: Domain = "a"
    train_identities: int = 300
    test_identities: int = 200
    cameras: int = 4
    images_per_camera: int = 3
    junk: int = 50
    distractors: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DatasetError(f'kind must be "person" or "vehicle", got {self.kind!r}')
        if self.domain not in get_args(Domain):
            raise DatasetError(f'domain must be "a" or "b", got {self.domain!r}')
        for name, low, high in (
            ("train_identities", 0, MOST_IDENTITIES),
            ("test_identities", 1, MOST_IDENTITIES),
            # A query needs a positive that another camera took.
            ("cameras", 2, MOST_CAMERAS),
            ("images_per_camera", 2, 99),
            ("junk", 0, MOST_OTHERS),
            ("distractors", 0, MOST_OTHERS),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise DatasetError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """How many pictures were written.

    Attributes:
        train: pictures in bounding_box_train.
        query: pictures in query.
        gallery: pictures in bounding_box_test, junk and distractors among them.
        junk: pictures named -1.
        distractors: pictures named 0000.
    """

    train: int
    query: int
    gallery: int
    junk: int
    distractors: int
