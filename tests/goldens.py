"""The goldens: weights, crops and features of the projects' own code (data/goldens/README.md beside the checkout)."""

import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reidserve.export.checkpoints import Feed

GOLDENS: dict[str, dict[str, Any]] = {
    "strong_resnet50_bnneck": {"dialect": "strong-baseline"},
    "strong_resnet50_ibn_a_bnneck": {"last_stride": 1, "resize": "bilinear"},
    "strong_resnet50_ibn_a_neck_no": {"dialect": "strong-baseline", "arch": "resnet50_ibn_a"},
    "dmt_resnet50": {"dialect": "dmt"},
    "dmt_resnet50_ibn_a": {"dialect": "dmt"},
    "fastreid_v011_bot_R50_ibn": {"dialect": "fast-reid-0.1", "pooling": "average"},
    "fastreid_v100_bot_R50_ibn": {"dialect": "fast-reid-1.0", "pooling": "average"},
    "fastreid_bot_R50_ibn": {"dialect": "fast-reid-1.3", "pooling": "average"},
    "fastreid_agw_R50_ibn": {"dialect": "fast-reid-1.3", "pooling": "gem"},
    "fastreid_sbs_R50_ibn": {"dialect": "fast-reid-1.3"},
    "layumi_ft_net": {"dialect": "layumi"},
    "layumi_ft_net_nolinear": {"last_stride": 2},
    "layumi_pcb": {},
    "pcb_official": {},
    "torchreid_resnet50": {"dialect": "torchreid"},
    "torchreid_resnet50_fc512": {"dialect": "torchreid-fc512"},
    "torchreid_resnet50_ibn_a": {"last_stride": 2},
    "torchvision_resnet50": {"dialect": "torchvision"},
    "ibnnet_resnet50_ibn_a_s1": {"dialect": "ibn-net", "last_stride": 1},
    "ibnnet_resnet50_ibn_a_s2": {"dialect": "ibn-net"},
    "ibnnet_resnet18_ibn_a_s2": {"last_stride": 2},
}
"""Every project's network whose features are known, with what is said to read it."""


def keys(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a project's tensors by their names."""
    return {name: tuple(shape) for name, shape, _ in json.loads((folder / "keys.json").read_text())}


def golden_weights(folder: Path) -> dict[str, Any]:
    """The weights that the features were computed with."""
    meta = json.loads((folder / "meta.json").read_text())
    digest, state = hashlib.sha256(), {}
    for name, shape in keys(folder).items():
        values = _draw(name, shape, meta)
        digest.update(name.encode() + values.tobytes())
        state[name] = torch.from_numpy(values)
    assert digest.hexdigest() == meta["weights_sha256"]
    return state


def _draw(name: str, shape: tuple[int, ...], meta: dict[str, Any]) -> NDArray[Any]:
    rng, leaf = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if name in ("pixel_mean", "pixel_std"):
        values = np.array(meta["pixel_buffers_in_state_dict"][name]).reshape(shape)
    elif leaf == "p":
        values = np.full(shape, 3.0)
    elif leaf in ("running_mean", "bias"):
        values = rng.standard_normal(shape) * 0.1
    elif leaf == "running_var" or len(shape) == 1:
        values = rng.uniform(0.5, 1.5, shape)
    else:
        scale = math.sqrt(2 / math.prod(shape[1:])) * (meta["conv_scale"] if len(shape) == 4 else 1)
        values = rng.standard_normal(shape) * scale
    return values.astype(np.float32)


def golden_inputs(folder: Path, feed: Feed) -> dict[str, NDArray[np.float32]]:
    """Noise and blocks, two crops each, as a network that is fed like this takes them."""
    height, width = json.loads((folder / "meta.json").read_text())["input_size_hw"]
    noise = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    blocks = np.random.default_rng(1).integers(0, 256, (2, height // 32, width // 32, 3), dtype=np.uint8)
    crops = {"": noise, "blocks_": blocks.repeat(32, axis=1).repeat(32, axis=2)}
    mean, std = np.array(feed.mean, np.float32), np.array(feed.std, np.float32)
    return {
        kind: np.ascontiguousarray(((crop / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
        for kind, crop in crops.items()
    }


def golden_feature(folder: Path, kind: str, parts: int) -> NDArray[np.float32]:
    """The feature of those crops; of parts, each brought to unit length, as the projects do after their networks."""
    feature: NDArray[np.float32] = np.load(folder / "golden.npz")[f"{kind}feature"]
    if not parts:
        return feature
    stripes = feature.reshape(len(feature), -1, parts)
    whole: NDArray[np.float32] = (stripes / np.linalg.norm(stripes, axis=1, keepdims=True)).reshape(len(feature), -1)
    return whole


def difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference over the largest value that is expected."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())
