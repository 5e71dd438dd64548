"""State dicts of small networks, as projects name their tensors, that take no room."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from reidserve.export.checkpoints import Feed
from reidserve.export.model import Architecture, Network

SMALL = Architecture(backbone="resnet18", ibn="a", classes=5)
FEED = Feed(resize="bicubic", height=64, width=32)


def small(**choices: Any) -> Architecture:
    facts: dict[str, Any] = {"backbone": "resnet18", "classes": 5} | choices
    return Architecture(**facts)


def shapes(**choices: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = Network(small(**choices))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def hollow(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Tensors of these shapes that take no room in a file: each is one number, repeated."""
    kinds = {True: torch.int64, False: torch.float32}
    return {name: torch.ones((), dtype=kinds[size == ()]).expand(size) for name, size in sizes.items()}


def renamed(starts: Mapping[str, str], **choices: Any) -> dict[str, Any]:
    """A small network's tensors, with other starts of their names."""

    def rename(name: str) -> str:
        part = name[: name.index(".") + 1]
        return starts.get(part, part) + name.removeprefix(part)

    return hollow({rename(name): size for name, size in shapes(**choices).items()})


def strong(**choices: Any) -> dict[str, Any]:
    """A small network's tensors as strong-baseline names them."""
    return renamed({"backbone.": "base.", "neck.": "bottleneck."}, **choices)


def bare(**choices: Any) -> dict[str, Any]:
    """A small network's tensors as torchvision and IBN-Net name them."""
    return renamed({"backbone.": "", "classifier.": "fc."}, neck="no", **choices)


STRONG = strong(ibn="a")


def fast_reid(head: dict[str, str], **choices: Any) -> dict[str, Any]:
    return renamed({"pooling.": "heads.pool_layer.", **head}, **choices)


BOTTLENECK = {"neck.": "heads.bottleneck.0.", "classifier.": "heads."}
EMBEDDED = {"embedding.": "heads.bottleneck.0.", "neck.": "heads.bottleneck.1.", "classifier.": "heads."}
ADDED = {"embedding.": "classifier.add_block.0.", "neck.": "classifier.add_block.1."}


def embedded() -> dict[str, Any]:
    """fast-reid's embedding layer is a convolution without bias."""
    state = fast_reid(EMBEDDED, embedding_dim=8)
    del state["heads.bottleneck.0.bias"]
    return state | hollow({"heads.bottleneck.0.weight": (8, 512, 1, 1)})


def parted(start: str, **more: tuple[int, ...]) -> dict[str, Any]:
    return renamed({"backbone.": start}, neck="no", classes=0) | hollow(more)


def of_parts(pattern: str, count: int, *size: int) -> dict[str, Any]:
    return hollow({pattern.format(part): size for part in range(count)})


NON_LOCAL = {"backbone": "resnet50", "non_local": (0, 2, 3, 0)}
PROJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "torchvision": ("torchvision", bare()),
    "torchvision bottlenecks": ("torchvision", bare(backbone="resnet50")),
    "ibn-net a": ("ibn-net", bare(ibn="a")),
    "ibn-net b": ("ibn-net", bare(ibn="b")),
    "strong-baseline": ("strong-baseline", STRONG),
    "strong-baseline plain": ("strong-baseline", strong()),
    "strong-baseline neck no": ("strong-baseline", strong(neck="no", ibn="a")),
    "dmt": ("dmt", strong()),
    "transreid-resnet": ("transreid-resnet", strong()),
    "fast-reid-0.1": (
        "fast-reid-0.1",
        fast_reid({"neck.": "heads.bnneck.", "classifier.": "heads.classifier."}, pooling="gem"),
    ),
    "fast-reid-1.0": (
        "fast-reid-1.0",
        fast_reid(BOTTLENECK | {"classifier.": "heads.classifier."}, pooling="gem", ibn="a"),
    ),
    "fast-reid-1.3": ("fast-reid-1.3", fast_reid(BOTTLENECK, pooling="gem", ibn="a")),
    "fast-reid-1.3 embedding": ("fast-reid-1.3", embedded()),
    "fast-reid-1.3 non-local": ("fast-reid-1.3", fast_reid(BOTTLENECK, pooling="gem", **NON_LOCAL)),
    "layumi": (
        "layumi",
        renamed({"backbone.": "model.", **ADDED, "classifier.": "classifier.classifier.0."}, embedding_dim=8)
        | hollow({"classifier.classifier.0.bias": (5,), "model.fc.weight": (1000, 512)}),
    ),
    "layumi without linear": (
        "layumi",
        renamed({"backbone.": "model.", "neck.": "classifier.add_block.0.", "classifier.": "classifier.classifier.0."}),
    ),
    "layumi-pcb": ("layumi-pcb", parted("model.") | of_parts("classifier{}.add_block.0.weight", 6, 8, 512)),
    "pcb": ("pcb", parted("base.") | hollow({"local_conv.weight": (8, 512, 1, 1)}) | of_parts("instance{}.bias", 6, 5)),
    "torchreid": ("torchreid", renamed({"backbone.": ""}, neck="no")),
    "torchreid-fc512": (
        "torchreid-fc512",
        renamed({"backbone.": "", "embedding.": "fc.0.", "neck.": "fc.1."}, embedding_dim=8)
        | hollow({"classifier.bias": (5,)}),
    ),
    "torchreid-pcb": (
        "torchreid-pcb",
        parted("") | hollow({"conv5.layers.0.weight": (8, 512, 1, 1)}) | of_parts("classifier.{}.weight", 4, 5, 8),
    ),
    "reidserve": ("reidserve", hollow(shapes(pooling="gem", embedding_dim=8))),
    "reidserve parts": ("reidserve", hollow(shapes(parts=3, embedding_dim=8))),
}
"""A dialect, and a small network's tensors as its project names them."""
OWN = {
    "reidserve": small(pooling="gem", embedding_dim=8),
    "reidserve parts": small(parts=3, embedding_dim=8),
}
"""What our own files among them say of themselves."""


def save(state: object, path: Path, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


def lively(network: Network) -> Network:
    """The network in evaluation mode, with running statistics that are not those of birth."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
            elif name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.1)
    return network.eval()


def damage(state: dict[str, Any], name: str, how: str) -> list[str]:
    """Damage one tensor; returns the names that the refusal must have."""
    tensor = state.pop(name)
    if how == "renamed":
        state[f"{name}_2"] = tensor
        return [name, f"{name}_2"]
    if how == "reshaped":
        state[name] = torch.ones(()).expand(tensor.shape[0] + 1, *tensor.shape[1:])
    return [name]
