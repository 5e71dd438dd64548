"""Flavours: the same network in float16 and int8, as graphs of their own."""

from reidserve.export.flavours.calibration import pick_calibration
from reidserve.export.flavours.half import make_half
from reidserve.export.flavours.integer import make_integer
from reidserve.export.flavours.ranges import Ranges, decode_ranges, encode_ranges, measure_ranges
from reidserve.export.flavours.sensitivity import Chosen, Make, choose_kept, rank_sensitivity

__all__ = [
    "Chosen",
    "Make",
    "Ranges",
    "choose_kept",
    "decode_ranges",
    "encode_ranges",
    "make_half",
    "make_integer",
    "measure_ranges",
    "pick_calibration",
    "rank_sensitivity",
]
