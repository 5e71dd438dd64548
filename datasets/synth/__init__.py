"""The synthetic set: persons and vehicles drawn from a seed, a real ReID problem that needs no download."""

from reidserve.datasets.synth.spec import Domain, Kind, SynthSpec, SynthSummary
from reidserve.datasets.synth.writer import write_dataset

__all__ = ["Domain", "Kind", "SynthSpec", "SynthSummary", "write_dataset"]
