"""What authors published of the same questions: their figures, on their data, never ours.

Figures stand as they were printed, divided by " / " in the order of the study's columns, "-" where there is none; a
text a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A line of a published table.

    Attributes:
        runs: its figures, a text a run; none where there are only words.
        words: what was said of it in words.
        trend: 1 for better than the line it is measured from, -1 for worse, where only words say it; else 0.
        why: why ours may come out otherwise.
    """

    runs: tuple[str, ...] = ()
    words: str = ""
    trend: int = 0
    why: str = ""

    def figures(self, place: int) -> list[float]:
        """The figure of a column, of each run that has it."""
        cells = [run.split(" / ")[place] for run in self.runs]
        return [float(cell) for cell in cells if cell != "-"]


SOURCES: Mapping[str, str] = {
    "init": "DukeMTMC-reID, PCB with ResNet-50, 100 epochs",
    "unfreeze": "240 classes of ImageNet, ResNet-50 pretrained on ImageNet-1k, 200 epochs; classification",
    "freeze": "CIFAR-10, ResNet-18 pretrained on ImageNet, 10 epochs; classification",
    "tricks": "Market-1501, ResNet-50",
    "swap": "Market-1501, ResNet-50",
    "transfer": "trained on Market-1501, tested on DukeMTMC-reID, ResNet-50",
    "adapt": "found in words, without figures",
}
"""What the published figures of a study were measured on; the network study has none."""

_FEW = "with few classes to tell apart and a short run, hardly any temperature is too high or too low"
_SMALL = "a small network on a few thousand drawn pictures has less to lose than ResNet-50 on Market-1501"
_ROWS = "rows that need not grow first help a run of few updates; the authors' runs were long"
_DRAWN = "drawn backgrounds are plainer than photographed ones, so that little is learnt from them that misleads"
_CLASSES = "here the classes are identities with a few images each, so that an epoch is a few dozen updates"

PUBLISHED: Mapping[str, Mapping[str, Published]] = {
    "init": {
        "after 1 % of the epochs": Published(runs=("0.0978 / 0.0455 / 0.0998 / 0.0185 / - / - / - / -",)),
        "after 10 %": Published(runs=("0.0157 / - / - / - / 0.353680 / 0.537702 / 0.625673 / 0.214494",)),
        "after 20 %": Published(
            runs=("0.0073 / - / - / - / 0.486984 / 0.663375 / 0.732047 / 0.306539",),
            why="a short run has come to its end before the learning rate falls",
        ),
        "after 30 %": Published(
            runs=("0.0043 / - / - / - / 0.540395 / 0.725763 / 0.789048 / 0.360594",),
            why="a short run has come to its end before the learning rate falls",
        ),
        "after 40 %": Published(
            runs=("0.0036 / - / - / - / 0.592908 / 0.764812 / 0.814183 / 0.395242",),
            why="a short run has come to its end before the learning rate falls",
        ),
        "after 41 %": Published(runs=("0.0017 / 0.9812 / 0.0004 / 0.9986 / - / - / - / -",)),
        "after 50 %": Published(runs=("0.0008 / - / - / - / - / - / - / -",)),
        "after all": Published(runs=("0.0007 / 0.9991 / 0.0004 / 1.0000 / - / - / - / -",)),
    },
    "unfreeze": {
        "the last layer alone": Published(runs=("93.8 / 93.44 / 93.48",)),
        "layer4 too": Published(runs=("95.24 / 93.6 / 93.7",), why=_CLASSES),
        "layer3 and layer4 too": Published(runs=("95.81 / 93.67 / 93.9",), why=_CLASSES),
    },
    "freeze": {
        "frozen, last epoch": Published(runs=("11176512 / 11181642 / 34.40 / 34.69",)),
        "unfrozen, first epoch": Published(runs=("- / - / 54.32 / 69.41",), why=_CLASSES),
        "unfrozen, last epoch": Published(runs=("- / - / 74.02 / 79.85",), why=_CLASSES),
    },
    "tricks": {
        "control": Published(runs=("83.5 / 93.1 / 97.7 / 98.7", "83.2 / 92.9 / 97.7 / 98.5")),
        "no BatchNorm before the classifier": Published(words="“several points” worse", trend=-1, why=_SMALL),
        "embedding layer of half the width": Published(
            runs=("77.9 / 90.2 / 97.2 / 98.3", "77.6 / 90.9 / 97.1 / 98.2"),
            why="the layer is drawn, and a small network has few dimensions to lose",
        ),
        "the dataset's own mean and std": Published(
            runs=("83.4 / 93.1 / 97.5 / 98.5", "83.8 / 93.3 / 97.7 / 98.6"),
            why="pretrained weights expect the statistics they were trained with, and a short run unlearns little",
        ),
        "class-centre initialisation": Published(
            runs=("85.6 / 94.0 / 98.0 / 98.7", "85.7 / 94.4 / 98.0 / 98.9"),
            why="it is worth what the pretrained features are worth, and those of a small set are worth less",
        ),
        "unit rows": Published(runs=("76.8 / 89.7 / 95.8 / 97.5", "77.8 / 90.1 / 95.3 / 96.7"), why=_ROWS),
        "unit rows, class-centre initialisation": Published(
            runs=("79.7 / 91.4 / 96.4 / 97.5", "79.7 / 91.1 / 96.0 / 97.7"), why=_ROWS
        ),
        "temperature .05": Published(runs=("81.1 / 92.7 / 97.3 / 98.6",), why=_FEW),
        "temperature .1": Published(runs=("82.8 / 92.5 / 97.6 / 98.8",), why=_FEW),
        "temperature .2": Published(runs=("69.8 / 84.5 / 92.8 / 94.8",), why=_FEW),
        "temperature .5": Published(runs=("48.1 / 67.7 / 84.1 / 89.0",), why=_FEW),
        "temperature 1.0": Published(runs=("31.7 / 50.8 / 72.9 / 80.5",), why=_FEW),
        "temperature growing": Published(runs=("75.4 / 88.1 / 94.7 / 96.3",), why=_FEW),
        "temperature shrinking": Published(runs=("62.4 / 81.1 / 92.9 / 96.1",), why=_FEW),
    },
    "swap": {
        "train ordinary, test ordinary": Published(runs=("78.8 / 90.4 / 95.9 / 97.2",)),
        "train swapped, test ordinary": Published(runs=("66.4 / 84.6 / 92.9 / 95.2",), why=_DRAWN),
        "train ordinary, test swapped": Published(runs=("45.7 / 66.1 / 81.4 / 86.0",), why=_DRAWN),
        "train swapped, test swapped": Published(runs=("66.3 / 83.8 / 92.3 / 94.4",), why=_DRAWN),
    },
    "transfer": {
        "train ordinary, test on the other": Published(runs=("15.9 / 29.1 / 45.5 / 53.1",)),
        "train swapped, test on the other": Published(
            runs=("9.5 / 19.4 / 31.5 / 37.8",),
            why="the backgrounds put in are the other dataset's own, so that swapped pictures look more like it",
        ),
    },
    "adapt": {
        "joint": Published(words="better than the target alone", trend=0),
        "target alone": Published(
            words="one model trained on both together “beats” it",
            trend=-1,
            why="drawn identities cluster nearly whole by themselves, and the source then takes half of each batch",
        ),
        "one cross-entropy over both": Published(
            words="“do not concatenate” the classes",
            trend=-1,
            why="with few classes on either side, one classifier hardly confuses the two domains",
        ),
    },
}
"""By study and line of its table."""
