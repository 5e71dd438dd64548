"""What reid-eval is told, by what it is about."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from reidserve.errors import UsageError

if TYPE_CHECKING:
    from reidserve.datasets import ProtocolName
    from reidserve.evaluate.protocols import Protocol

_Unsaid = Parameter(show_default=False)
_Switch = Parameter(negative="")


@Parameter(name="*", group=Group.create_ordered("What is scored"))
@dataclass(frozen=True, slots=True)
class Scored:
    """What is scored; several stand side by side.

    Attributes:
        checkpoint: A checkpoint, embedded with in torch.
        model: The artifact, as reid-export wrote it, or triton://host:8001/name; model/ where nothing else is said.
        gallery: A gallery that --model embedded, ranked by its own index.
        server: A running reid-serve, host:port, asked about each query image by several callers at once.
        server_gallery: The gallery's name there, where the server has several.
    """

    checkpoint: Annotated[Path | None, _Unsaid] = None
    model: Annotated[str | None, _Unsaid] = None
    gallery: Annotated[Path | None, _Unsaid] = None
    server: Annotated[str | None, _Unsaid] = None
    server_gallery: str = ""

    def __post_init__(self) -> None:
        if self.gallery is not None and self.model is None:
            raise UsageError("--gallery is searched with what --model embeds: name the artifact too")
        if self.server_gallery and self.server is None:
            raise UsageError("--server-gallery names a gallery of --server")

    @property
    def deployed(self) -> bool:
        """Whether a gallery as it stands is scored."""
        return self.gallery is not None or self.server is not None

    @property
    def anything(self) -> bool:
        """Whether anything was named."""
        return self.checkpoint is not None or self.model is not None or self.deployed


@Parameter(name="*", group=Group.create_ordered("Protocol and rule"))
@dataclass(frozen=True, slots=True)
class Ruled:
    """How it is scored; the defaults are the rule of Market-1501.

    Attributes:
        protocol: How queries meet the gallery, where the dataset does not say it: market1501 ranks the whole
            gallery; vehicleid and cuhk03-single-shot draw one image per identity, again and again; image-to-track
            ranks tracks.
        trials: How often a gallery is drawn; 10 for vehicleid and 100 for cuhk03-single-shot, as published.
        seed: Of what is drawn.
        tracks: What a track's score is: that of its nearest image, or that of the mean of its embeddings.
        multi_query: Ask with the mean of all images of a query's identity and camera (gt_bbox/ or multi-query/).
        cameras: What a query's own camera drops: market drops the entries of its pid, cross drops all, any none.
        junk: Count junk (pid -1) as wrong, in place of dropping it.
        no_distractors: Drop distractors (pid 0000), in place of counting them as wrong.
        all_queries: Let queries without a right image count as nothing found, in place of leaving them out.
    """

    protocol: Annotated[Literal["market1501", "cuhk03-single-shot", "vehicleid", "image-to-track"] | None, _Unsaid] = (
        None
    )
    trials: Annotated[int | None, _Unsaid] = None
    seed: int = 0
    tracks: Literal["nearest", "mean"] = "nearest"
    multi_query: Annotated[bool, _Switch] = False
    cameras: Literal["market", "cross", "any"] = "market"
    junk: Annotated[bool, _Switch] = False
    no_distractors: Annotated[bool, _Switch] = False
    all_queries: Annotated[bool, _Switch] = False

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise UsageError(f"--trials must be at least 1, got {self.trials}")

    def as_protocol(self, usual: "ProtocolName") -> "Protocol":
        """The protocol that was said, or else the dataset's usual one."""
        from reidserve.evaluate import Rule
        from reidserve.evaluate.protocols import Protocol

        rule = Rule(
            cameras=self.cameras,
            junk=self.junk,
            distractors=not self.no_distractors,
            queries="all" if self.all_queries else "matchable",
        )
        return Protocol(self.protocol or usual, rule, trials=self.trials, seed=self.seed, similarity=self.tracks)


@Parameter(name="*", group=Group.create_ordered("Beyond plain ranking"))
@dataclass(frozen=True, slots=True)
class Varied:
    """What else is tried, of a checkpoint, an artifact or features.

    Attributes:
        flip: Embed each image and its mirror image, and take the mean.
        rerank: Score the k-reciprocal order too (Zhong et al., 2017).
        k1: Its neighbourhood.
        k2: Its local expansion; 1 for none.
        weight: The share of the plain distance in it, 0 to 1.
        expand: Score queries averaged with this many of their best hits too; 0 for not.
        alpha: How much nearer hits weigh in that mean; 0 weighs all alike.
    """

    flip: Annotated[bool, _Switch] = False
    rerank: Annotated[bool, _Switch] = False
    k1: int = 20
    k2: int = 6
    weight: float = 0.3
    expand: int = 0
    alpha: float = 3.0

    def __post_init__(self) -> None:
        if self.expand < 0:
            raise UsageError(f"--expand must be a number of hits, 0 for none, got {self.expand}")


@Parameter(name="*", group=Group.create_ordered("Checkpoint of another project"))
@dataclass(frozen=True, slots=True)
class Told:
    """What a checkpoint does not tell, as reid-export takes it.

    Attributes:
        size: Input size, height first, such as 256x128.
        mean: Mean of the training pixels in 0..1, one number or one per channel of --colour.
        std: Their standard deviation, likewise.
        colour: The channel order the model was trained on.
        resize: The Pillow filter its crops were resized with.
        dialect: The project a checkpoint is of, for all that is usual there.
        arch: The architecture a checkpoint must be of.
        last_stride: The stride of a checkpoint's last stage.
        stem_pool: The pooling of its stem.
        stem_relu: Whether a ReLU follows the norm of its stem.
        pooling: Its global pooling.
    """

    size: Annotated[str | None, _Unsaid] = None
    mean: Annotated[str | None, _Unsaid] = None
    std: Annotated[str | None, _Unsaid] = None
    colour: Annotated[Literal["rgb", "bgr"] | None, _Unsaid] = None
    resize: Annotated[Literal["nearest", "bilinear", "bicubic", "lanczos"] | None, _Unsaid] = None
    dialect: Annotated[str | None, _Unsaid] = None
    arch: Annotated[str | None, _Unsaid] = None
    last_stride: Annotated[Literal[1, 2] | None, _Unsaid] = None
    stem_pool: Annotated[Literal["padded", "halving", "ceil"] | None, _Unsaid] = None
    stem_relu: Annotated[bool | None, _Unsaid] = None
    pooling: Annotated[Literal["average", "gem"] | None, _Unsaid] = None


@Parameter(name="*", group=Group.create_ordered("What is written"))
@dataclass(frozen=True, slots=True)
class Written:
    """What is written, beside what is printed.

    Attributes:
        report: A folder to make: index.html to look at, report.json to compare.
        per_query: A .csv or .parquet to write: how each query fared.
        picture: A PNG to write: queries from the best ranked to the worst, each with its best gallery crops.
        threshold: A file to write: the score that means "the same identity", for reid-serve --threshold.
        false_alarms: How often that may be wrong, 0 to 1.
        per: What a false alarm is: a search of someone who is not in the gallery, or a pair of two identities.
        max_rank: How far the CMC goes in --report and --json.
    """

    report: Annotated[Path | None, _Unsaid] = None
    per_query: Annotated[Path | None, _Unsaid] = None
    picture: Annotated[Path | None, _Unsaid] = None
    threshold: Annotated[Path | None, _Unsaid] = None
    false_alarms: float = 0.01
    per: Literal["search", "pair"] = "search"
    max_rank: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.false_alarms < 1:
            raise UsageError(f"--false-alarms must be between 0 and 1, got {self.false_alarms:g}")
        if self.max_rank < 10:
            raise UsageError(f"--max-rank must be at least 10, got {self.max_rank}")
        if self.per_query is not None and self.per_query.suffix not in (".csv", ".parquet"):
            raise UsageError(f"--per-query must end in .csv or .parquet, got {str(self.per_query)!r}")
        for name in ("report", "per_query", "picture", "threshold"):
            path: Path | None = getattr(self, name)
            option = f"--{name.replace('_', '-')}"
            if path is None:
                continue
            if not path.absolute().parent.is_dir():
                raise UsageError(f"{option} must be in a folder that is there, got {str(path)!r}")
            if name == "report" and path.exists():
                raise UsageError(f"{option} is made new, and there is something at {str(path)!r} already")
            if name != "report" and path.is_dir():
                raise UsageError(f"{option} must be a file, {str(path)!r} is a folder")
