"""The first batch of a run as the network sees it."""

from collections.abc import Sequence

from PIL import Image as Pillow

from reidserve.datasets import Crop
from reidserve.embed import Batch
from reidserve.export.train.material import Material
from reidserve.export.train.report.cells import Cell, Row, draw_rows, fit
from reidserve.export.train.sampler import draw_batches
from reidserve.export.train.settings import Settings

_MOST_IDENTITIES, _MOST_IMAGES = 32, 16


def draw_first_batch(material: Material, settings: Settings) -> Pillow.Image:
    """The first batch after augmentation, in the pixels that are fed to the network: each row an identity."""
    rows = draw_batches(
        material.labels,
        batch_identities=settings.batch.identities,
        batch_images=settings.batch.images,
        seed=settings.seed,
        epoch=1,
    )[0]
    pixels = material.batch(rows, settings, epoch=1, step=0)
    return draw_identities(pixels, [material.train.crops[row] for row in rows], settings.batch.images)


def draw_identities(pixels: Batch, crops: Sequence[Crop], images: int) -> Pillow.Image:
    """A batch in which each identity has so many images side by side, a row each; large ones in part."""
    identities = len(pixels) // images
    rows = [
        Row(
            f"pid {crops[start].pid}",
            [
                Cell(fit(pixels[place]), [f"camera {'?' if crops[place].camid is None else crops[place].camid}"])
                for place in range(start, start + min(images, _MOST_IMAGES))
            ],
        )
        for start in range(0, images * min(identities, _MOST_IDENTITIES), images)
    ]
    height, width = pixels.shape[1:3]
    part = "" if identities <= _MOST_IDENTITIES and images <= _MOST_IMAGES else " (in part)"
    return draw_rows(f"first batch: {identities} identities x {images} images of {height}x{width}{part}", rows)
