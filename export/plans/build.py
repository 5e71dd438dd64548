"""A plan, built by TensorRT through Polygraphy. Nothing else uses Polygraphy.

Precision stands in the graph: the network is strongly typed, as all are from TensorRT 11 on, and no flag may change
it. Float32 stays float32: TF32, the builder's default, moves every embedding.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reidserve.embed import Plan, Precision
from reidserve.embed.gpu import INSTALL
from reidserve.embed.tensorrt_session import Platform, faulty_batches, find_platform
from reidserve.errors import DeviceError, ExportError
from reidserve.export.plans.timings import read_timings, write_timings


def plan_file(precision: Precision, gpu: str) -> str:
    """The name of a plan inside an artifact, such as "model.fp16.nvidia-a10.plan"."""
    slug = re.sub("[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"model.{precision}.{slug}.plan"


def build_plan(
    graph: bytes, *, name: str, precision: Precision, batches: Sequence[int], timing_cache: Path | None = None
) -> tuple[bytes, Plan]:
    """Compile a graph of the contract for the GPU that is here: takes minutes, less with a timing cache.

    `name` is the graph's file, `precision` what it computes in. The plan takes 1 image to the largest of `batches`
    and is tuned for the middle one. Timings of another GPU or TensorRT cost nothing but time: they are passed over, and
    these take their place.

    Raises:
        ExportError: TensorRT, Polygraphy or a GPU is missing, or TensorRT cannot build it; in its own words.
    """
    batches = tuple(sorted(set(batches)))
    if fault := faulty_batches(batches):
        raise ExportError(fault)
    here, before = find_builder(), read_timings(timing_cache)
    with _complaints() as complaints:
        try:
            plan, timings = _compile(graph, batches, before)
        except Exception as error:  # Polygraphy's own, and whatever the bindings raise
            words = "; ".join(complaints) or str(error)
            raise ExportError(f"TensorRT {here.tensorrt} builds no plan of {name}: {words}") from error
    if timing_cache is not None and timings:
        write_timings(timing_cache, timings)
    return plan, Plan(
        graph=name,
        precision=precision,
        gpu=here.gpu,
        capability=here.capability,
        driver=here.driver,
        tensorrt=here.tensorrt,
        batches=batches,
    )


def find_builder() -> Platform:
    """What a plan would be built by and for here.

    Raises:
        ExportError: there is no GPU, or TensorRT or Polygraphy is not installed.
    """
    try:
        import polygraphy  # noqa: F401 — only whether it is there

        return find_platform()
    except ImportError as error:
        raise ExportError(f"a plan is built through Polygraphy, which is not installed here: {INSTALL}") from error
    except DeviceError as error:
        raise ExportError(f"a plan is built where it will run: {error}") from error


def _compile(graph: bytes, batches: Sequence[int], timings: bytes) -> tuple[bytes, bytes]:
    """The plan, and what was timed for it and before; nothing where TensorRT kept no count."""
    from polygraphy.backend import trt

    builder, network, parser = trt.network_from_onnx_bytes(graph, strongly_typed=True)
    config = trt.create_config(
        builder,
        network,
        tf32=False,
        profiles=[_profile(network, batches)],
    )
    _take_up(config, timings)
    plan = bytes(trt.engine_bytes_from_network((builder, network, parser), config=config))
    cache = config.get_timing_cache()
    return plan, bytes(cache.serialize()) if cache is not None else b""


def _take_up(config: Any, timings: bytes) -> None:  # noqa: ANN401 — Polygraphy has no types
    # TensorRT tells by itself what was timed elsewhere, and then keeps the empty cache that the configuration has.
    cache = config.create_timing_cache(timings) if timings else None
    if cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=False)


def _profile(network: Any, batches: Sequence[int]) -> Any:  # noqa: ANN401 — Polygraphy has no types
    from polygraphy.backend import trt

    crops = network.get_input(0)
    sizes = (1, batches[len(batches) // 2], batches[-1])
    least, common, most = ((size, *tuple(crops.shape)[1:]) for size in sizes)
    return trt.Profile().add(crops.name, min=least, opt=common, max=most)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What Polygraphy and TensorRT complain of inside the block, which they would print."""
    from polygraphy.logger import G_LOGGER

    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage().strip())

    before = (G_LOGGER.use_python_logging_system, G_LOGGER.colors, G_LOGGER.letter)
    G_LOGGER.use_python_logging_system, G_LOGGER.colors, G_LOGGER.letter = True, False, False
    logger = logging.getLogger("Polygraphy")
    listener = Listener(logging.ERROR)
    logger.addHandler(listener)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield heard
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagated
        G_LOGGER.use_python_logging_system, G_LOGGER.colors, G_LOGGER.letter = before
