"""The studies: what each asks, its control, what is changed, and the lines of its table.

Base settings are the authors' where they said them (`published.py`). The control's temperature is not published: ours
lies between the two best.
"""

from collections.abc import Mapping

from reidserve.export.study.study import Line, Study, Tested, Variant, find

_CROP = ("input.height=64", "input.width=32", "batch.identities=8")
_SMALL = ("network.arch=resnet18", *_CROP)
"""A network and a batch that two processor cores get through in seconds."""
_CLASSIFICATION = (
    *("network.neck=no", "network.last_stride=2", "loss.smoothing=0", "loss.metric=none"),
    *("evaluation.every=0", "init.pretrained=given"),
)
"""Held-out images of training identities are classified; query and gallery stay out of it."""

INIT = Study(
    name="init",
    title="What weights begin as",
    base=(
        *("network.arch=resnet50", "network.parts=6", "network.neck=bnneck", "input.height=384", "input.width=192"),
        *("loss.metric=none", "loss.smoothing=0", "optim.name=sgd", "optim.lr=0.01", "optim.head_lr=10"),
        *("schedule.warm_up=0", "schedule.milestones=[0.4]", "augment.erase=0", "init.head=default"),
        *("evaluation.held_out=0.1", "evaluation.every=10", "stages.1.epochs=100"),
    ),
    quick=(
        *("network.arch=resnet18", "input.height=96", "input.width=32", "batch.identities=8"),
        # The full scale's rate throws small batches back to below untrained weights.
        *("optim.lr=0.002", "evaluation.every=1", "stages.1.epochs=10"),
    ),
    variants=(
        Variant(name="nothing initialised specially"),
        Variant(name="nn.init on the head", changes=("init.head=normal",)),
        Variant(name="pretrained, nn.init on the head", changes=("init.head=normal", "init.pretrained=given")),
    ),
    lines=(
        *(
            Line(name=name, variant="nothing initialised specially", at=share, against="after 10 %")
            for name, share in (
                *(("after 1 % of the epochs", 0.01), ("after 10 %", 0.1), ("after 20 %", 0.2), ("after 30 %", 0.3)),
                *(("after 40 %", 0.4), ("after 41 %", 0.41), ("after 50 %", 0.5), ("after all", 1.0)),
            )
        ),
        Line(name="nn.init on the head", variant="nn.init on the head", against="after all"),
        Line(name="pretrained, nn.init on the head", variant="pretrained, nn.init on the head", against="after all"),
    ),
    figures=("loss", "accuracy", "val_loss", "val_accuracy", "rank1", "rank5", "rank10", "mAP"),
    by_epoch=True,
)

UNFREEZE = Study(
    name="unfreeze",
    title="Layers that learn, stage by stage",
    base=(
        *_CLASSIFICATION,
        *("network.arch=resnet50", "batch.identities=40", "batch.images=4", "optim.lr=0.001", "augment.erase=0"),
        *("evaluation.held_out=0.4", 'stages.1.learns=["head"]', "stages.1.epochs=200"),
    ),
    quick=(*_SMALL, "stages.1.epochs=8"),
    variants=(
        Variant(name="last layer"),
        Variant(
            name="layer4",
            changes=('stages.2.learns=["layer4", "head"]', "stages.2.lr=0.1", "stages.2.epochs=200"),
            quick=("stages.2.epochs=8",),
        ),
        Variant(
            name="layer3 and layer4",
            changes=('stages.2.learns=["layer3", "layer4", "head"]', "stages.2.lr=0.1", "stages.2.epochs=200"),
            quick=("stages.2.epochs=8",),
        ),
    ),
    lines=(
        Line(name="the last layer alone", variant="last layer"),
        Line(name="layer4 too", variant="layer4"),
        Line(name="layer3 and layer4 too", variant="layer3 and layer4"),
    ),
    figures=("accuracy", "val_accuracy", "test_accuracy"),
    metric="test_accuracy",
    seed=20,
)

FREEZE = Study(
    name="freeze",
    title="A frozen backbone first, then all",
    base=(
        *_CLASSIFICATION,
        *("network.arch=resnet18", "batch.identities=16", "batch.images=4", "evaluation.held_out=0.2"),
        *("optim.name=adam", "optim.lr=0.001", "optim.weight_decay=0.0001"),
        *("schedule.name=plateau", "schedule.warm_up=0", "schedule.decay=0.5", "schedule.patience=2"),
        *("augment.pad=0.125", "augment.erase=0", "augment.rotate=15"),
        *("augment.brightness=0.2", "augment.contrast=0.2", "augment.saturation=0.2", "augment.hue=0.1"),
        *('stages.1.learns=["head"]', "stages.1.epochs=5", "stages.2.lr=0.1", "stages.2.epochs=5"),
    ),
    quick=("input.height=64", "input.width=32"),
    variants=(
        Variant(name="frozen for half of the epochs"),
        Variant(name="never frozen", changes=('stages.1.learns=["all"]',)),
    ),
    lines=(
        Line(name="frozen, last epoch", variant="frozen for half of the epochs", at=0.5),
        Line(name="unfrozen, first epoch", variant="frozen for half of the epochs", at=0.6),
        Line(name="unfrozen, last epoch", variant="frozen for half of the epochs"),
        Line(name="never frozen", variant="never frozen", against="unfrozen, last epoch"),
    ),
    figures=("frozen", "parameters", "accuracy", "val_accuracy"),
    metric="val_accuracy",
    by_epoch=True,
)


def _across(tested: Tested, where: str) -> list[Line]:
    return [
        Line(name=f"{variant}, {where}", variant=variant, tested=tested)
        for variant in ("IBN-a, BNNeck", "plain, BNNeck", "IBN-a, no neck")
    ]


BACKBONE = Study(
    name="backbone",
    title="The network: IBN-a or plain, neck or none, in the domain and across",
    base=("network.arch=resnet50_ibn_a", "evaluation.every=60", "stages.1.epochs=60", "init.pretrained=given"),
    quick=(*_CROP, "network.arch=resnet18_ibn_a", "evaluation.every=6", "stages.1.epochs=6"),
    variants=(
        Variant(name="IBN-a, BNNeck"),
        Variant(name="plain, BNNeck", changes=("network.arch=resnet50",), quick=("network.arch=resnet18",)),
        Variant(name="IBN-a, no neck", changes=("network.neck=no",)),
    ),
    lines=(*_across("ordinary", "same domain"), *_across("other", "other domain")),
)

_TRICKS = (
    *("network.arch=resnet50", "loss.metric=none", "loss.smoothing=0", "init.pretrained=given"),
    *("head.unit_features=true", "head.temperature=0.07", "evaluation.every=60", "stages.1.epochs=60"),
)
_TRICKS_QUICK = (*_SMALL, "evaluation.every=6", "stages.1.epochs=6")


def _trick(name: str, *changes: str, quick: tuple[str, ...] = ()) -> Variant:
    return Variant(name=name, changes=changes, quick=quick)


_TRIED = (
    _trick("control"),
    _trick("no BatchNorm before the classifier", "network.neck=no"),
    _trick("embedding layer of half the width", "network.embedding_dim=1024", quick=("network.embedding_dim=256",)),
    _trick("the dataset's own mean and std", "input.statistics=dataset"),
    _trick("class-centre initialisation", "init.class_centres=true"),
    _trick("unit rows", "head.unit_rows=true"),
    _trick("unit rows, class-centre initialisation", "head.unit_rows=true", "init.class_centres=true"),
    _trick("temperature .05", "head.temperature=0.05"),
    _trick("temperature .1", "head.temperature=0.1"),
    _trick("temperature .2", "head.temperature=0.2"),
    _trick("temperature .5", "head.temperature=0.5"),
    _trick("temperature 1.0", "head.temperature=1.0"),
    _trick("temperature growing", "head.temperature=0.1", "head.temperature_schedule=growing"),
    _trick("temperature shrinking", "head.temperature=0.1", "head.temperature_schedule=shrinking"),
)

TRICKS = Study(
    name="tricks",
    title="Training tricks, each alone",
    base=_TRICKS,
    quick=_TRICKS_QUICK,
    variants=_TRIED,
    lines=tuple(Line(name=variant.name, variant=variant.name) for variant in _TRIED),
)

_BACKGROUNDS = (Variant(name="ordinary"), Variant(name="swapped", training="swapped"))

SWAP = Study(
    name="swap",
    title="Foregrounds on another dataset's backgrounds",
    base=_TRICKS,
    quick=_TRICKS_QUICK,
    variants=_BACKGROUNDS,
    lines=(
        Line(name="train ordinary, test ordinary", variant="ordinary"),
        Line(name="train swapped, test ordinary", variant="swapped"),
        Line(name="train ordinary, test swapped", variant="ordinary", tested="swapped"),
        Line(name="train swapped, test swapped", variant="swapped", tested="swapped"),
    ),
)

TRANSFER = Study(
    name="transfer",
    title="Foregrounds on another dataset's backgrounds, tested on that dataset",
    base=_TRICKS,
    quick=_TRICKS_QUICK,
    variants=_BACKGROUNDS,
    lines=(
        Line(name="train ordinary, test on the other", variant="ordinary", tested="other"),
        Line(name="train swapped, test on the other", variant="swapped", tested="other"),
    ),
)


def _adapted(name: str, mode: str) -> Variant:
    return Variant(
        name=name,
        changes=("init.pretrained=control", f"adapt.mode={mode}"),
        # Of each synthetic person there are twelve images: neighbours beyond them are others.
        quick=("adapt.epochs=5", "adapt.k1=12", "adapt.eps=0.5"),
    )


ADAPT = Study(
    name="adapt",
    title="Adapting to unlabelled images of another domain",
    base=("network.arch=resnet50_ibn_a", "evaluation.every=60", "stages.1.epochs=60", "init.pretrained=given"),
    quick=("network.arch=resnet18_ibn_a", *_CROP, "evaluation.every=6", "stages.1.epochs=6"),
    variants=(
        Variant(name="source alone"),
        _adapted("joint", "joint"),
        _adapted("target alone", "target"),
        _adapted("one cross-entropy", "mixed"),
    ),
    lines=(
        Line(name="source alone, not adapted", variant="source alone", tested="other"),
        Line(name="joint", variant="joint", tested="other"),
        Line(name="target alone", variant="target alone", tested="other", against="joint"),
        Line(name="one cross-entropy over both", variant="one cross-entropy", tested="other", against="joint"),
    ),
)

STUDIES: Mapping[str, Study] = {
    study.name: study for study in (INIT, UNFREEZE, FREEZE, BACKBONE, TRICKS, SWAP, TRANSFER, ADAPT)
}


def find_study(name: str) -> Study:
    """The study of a name.

    Raises:
        UsageError: there is none; the nearest name is said.
    """
    return STUDIES[find(name, STUDIES, "study")]
