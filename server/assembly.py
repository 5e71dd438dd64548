"""Assembly: what was loaded, put together to be served."""

from dataclasses import dataclass

from reidserve.server.deployment import Served
from reidserve.server.guard.audit import Audit
from reidserve.server.loading import Loaded
from reidserve.server.queries.limits import Limits
from reidserve.server.queries.pipeline import Pipeline
from reidserve.server.settings import Settings
from reidserve.server.telemetry.telemetry import Telemetry
from reidserve.server.writes.writer import Writer


@dataclass(frozen=True, slots=True)
class Assembly:
    """Puts a model and its galleries together.

    Attributes:
        settings: what the server was told.
        telemetry: is told of stages, batches and refusals.
        audit: keeps a record of writes.
    """

    settings: Settings
    telemetry: Telemetry
    audit: Audit

    async def __call__(self, loaded: Loaded, before: Served | None) -> Served:
        """What is to be served, and after what; on the event loop.

        A gallery that was served before keeps its receipts; where all were, their states go on being kept.

        Raises:
            GalleryError: a gallery cannot be written to.
        """
        settings = self.settings
        limits = Limits(
            images_in_flight=settings.images_in_flight,
            images_per_call=settings.images_per_call,
            images_per_batch=settings.batch,
        )
        same = None if before is None or before.pipeline.galleries != loaded.galleries else before.pipeline
        pipeline = Pipeline(
            loaded.embedder,
            loaded.galleries,
            threshold=loaded.threshold,
            limits=limits,
            telemetry=self.telemetry,
            pins=None if same is None else same.pins,
            sources=settings.sources_root,
        )
        writers: dict[str, Writer] = {}
        try:
            for name, gallery in {} if settings.read_only else loaded.galleries.items():
                earlier = None if before is None else before.writers.get(name)
                if earlier is not None and earlier.gallery is not gallery:
                    earlier = None
                writers[name] = Writer(
                    gallery,
                    pipeline.embed_for_import,
                    name=name,
                    snapshots=settings.snapshots,
                    thumbnails=settings.thumbnails,
                    audit=self.audit,
                    receipts=None if earlier is None else earlier.receipts,
                    turn=None if earlier is None else earlier.turn,
                )
        except BaseException:
            for writer in writers.values():
                await writer.close()
            await pipeline.close(galleries=False)
            raise
        return Served(pipeline, writers, 0 if before is None else before.reloads + 1)
