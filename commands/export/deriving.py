"""reid-export MODEL: other precisions and plans of an artifact, each kept only if it ranks as the model does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from reidserve.commands.console import DONE, FAILED, print_facts, print_json, print_lines, progress, warn_lines
from reidserve.errors import EvaluationError, ParityError, UsageError

if TYPE_CHECKING:
    from reidserve.datasets import Crop
    from reidserve.embed import Precision
    from reidserve.export.derive import Calibration, Derived, Verification
    from reidserve.export.parity import Parity

_Unsaid = Parameter(show_default=False)
_Switch = Parameter(negative="")

_BATCHES = "1,8,32"
_BUDGETS: Mapping["Precision", float] = {"fp16": 0.1, "int8": 0.5}
"""Points of mAP that may be lost on training identities."""


@Parameter(name="*", group=Group.create_ordered("Flavours and plans of MODEL"))
@dataclass(frozen=True, slots=True)
class Wanted:
    """What is made of an artifact.

    Attributes:
        precision: The number format that most of it computes in; fp32 is model.onnx itself.
        calibrate: Training images, a dataset's training part or a folder of crops: half of their identities tell how
            far values reach, the other half what is lost. int8 needs them; fp16 is safer with them.
        int8_budget: Points of mAP that int8 may lose on these, 0.5 if nothing is said; operators that prove most
            sensitive stay in fp32 until it is kept.
        int8_for: Make one of the two int8 graphs alone; CPUs want unsigned activations, TensorRT symmetric ones.
        tensorrt: Compile the graph of --precision with TensorRT, for the GPU that is here.
        batch: Batch sizes of a plan, 1,8,32 if nothing is said; the largest is the largest it takes.
        cache: Where ranges and TensorRT's timings are kept; $XDG_CACHE_HOME/reidserve if nothing is said.
    """

    precision: Annotated[Literal["fp32", "fp16", "int8"] | None, _Unsaid] = None
    calibrate: Annotated[Path | None, _Unsaid] = None
    int8_budget: Annotated[float | None, _Unsaid] = None
    int8_for: Annotated[Literal["cpu", "tensorrt"] | None, _Unsaid] = None
    tensorrt: Annotated[bool, _Switch] = False
    batch: Annotated[str | None, _Unsaid] = None
    cache: Annotated[Path | None, _Unsaid] = None

    def __post_init__(self) -> None:
        if self.precision != "int8" and (self.int8_budget is not None or self.int8_for is not None):
            raise UsageError("--int8-budget and --int8-for are of --precision int8")
        if self.int8_budget is not None and not 0 <= self.int8_budget <= 100:
            raise UsageError(f"--int8-budget must be 0 to 100 points of mAP, got {self.int8_budget:g}")
        if self.batch is not None and not self.tensorrt:
            raise UsageError("--batch is of --tensorrt: a graph takes any number of images")
        if self.calibrate is not None and (self.tensorrt or self.precision not in ("fp16", "int8")):
            raise UsageError("--calibrate is of --precision fp16 and int8; a plan is compiled from what they made")

    @property
    def anything(self) -> bool:
        """Whether a flavour or a plan was asked for."""
        return self.precision is not None or self.tensorrt

    @property
    def makes(self) -> bool:
        """Whether it was said how something is made."""
        ways = (self.calibrate, self.int8_budget, self.int8_for, self.batch, self.cache)
        return any(way is not None for way in ways)

    @property
    def batches(self) -> list[int]:
        """The batch sizes.

        Raises:
            UsageError: they do not read.
        """
        parts = (self.batch or _BATCHES).split(",")
        if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
            raise UsageError(f"--batch must be numbers with commas between, such as 1,8,32, got {self.batch!r}")
        return [int(part) for part in parts]


@Parameter(name="*", group=Group.create_ordered("The gate"))
@dataclass(frozen=True, slots=True)
class Gate:
    """What is proven before it is kept, and how well.

    Attributes:
        verify: Labelled images to prove it on, which nothing was trained or calibrated on: a dataset, or a folder of
            crops. Too few prove nothing, and are refused. Of crops without labels rankings alone are compared.
        bound: Points of mAP that may be lost: 0.05 in fp32, 0.2 in fp16 and 0.5 in int8 where nothing is said.
        cosine_floor: The least cosine between an image's two embeddings.
        unverified: Keep a flavour or plan that was not proven; the contract and the server will say so.
        seed: Of the intervals, and of which training crops are calibrated on.
    """

    verify: Annotated[Path | None, _Unsaid] = None
    bound: Annotated[float | None, _Unsaid] = None
    cosine_floor: Annotated[float | None, _Unsaid] = None
    unverified: Annotated[bool, _Switch] = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.verify is None and (self.bound is not None or self.cosine_floor is not None):
            raise UsageError("--bound and --cosine-floor are of --verify: name the images to prove it on")
        if self.verify is not None and self.unverified:
            raise UsageError("--verify and --unverified exclude each other")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, got {self.seed}")

    def verification(self, precision: "Precision") -> "Verification | None":
        """What it is proven on; None where nothing was named.

        Raises:
            UsageError: a bound that is none.
            DatasetError: the data are not what was said of them.
        """
        if self.verify is None:
            return None
        from reidserve.export.derive import Verification
        from reidserve.export.parity import DEFAULT_BOUNDS, Bounds

        usual = DEFAULT_BOUNDS[precision]
        try:
            bounds = Bounds(
                points=usual.points if self.bound is None else self.bound,
                cosine=usual.cosine if self.cosine_floor is None else self.cosine_floor,
            )
        except EvaluationError as error:
            raise UsageError(str(error)) from error
        query, gallery = _read_parts(self.verify)
        return Verification(query=query, gallery=gallery, bounds={**DEFAULT_BOUNDS, precision: bounds}, seed=self.seed)


def derive(model: Path, wanted: Wanted, gate: Gate, *, force: bool, json: bool) -> int:
    """Make what is wanted of a model, and say how it went."""
    precision = wanted.precision or "fp32"
    _check_asked(wanted, gate, precision)
    try:
        with progress(f"making {'a plan' if wanted.tensorrt else precision}") as advance:
            made = _make(model, precision, wanted, gate, force, advance)
    except ParityError as error:
        return show_refusal(error, json=json)
    _report(model, made, json=json)
    return DONE


def show_refusal(error: ParityError, *, json: bool) -> int:
    """What did not pass, and by how much."""
    parity: Any = error.parity
    if json:
        print_json({"error": {"reason": error.reason, "message": str(error)}, "parity": parity})
    else:
        show_parity(parity)
    warn_lines([f"error: {error}"])
    return FAILED


def show_parity(parity: "Parity") -> None:
    """The table of what was measured."""
    from reidserve.export.parity import table_lines

    print_lines([*table_lines(parity), ""])


def _check_asked(wanted: Wanted, gate: Gate, precision: "Precision") -> None:
    if not wanted.anything and gate.verify is None:
        raise UsageError("expected what to make of the model: --precision fp16 or int8, --tensorrt, or --verify DATA")
    if precision == "fp32" and not wanted.tensorrt:
        if gate.verify is None:
            raise UsageError("fp32 is model.onnx itself, which is there: prove it with --verify DATA")
    elif gate.verify is None and not gate.unverified:
        what = "a TensorRT plan" if wanted.tensorrt else precision
        raise UsageError(
            f"{what} may rank otherwise: prove it with --verify DATA, or say --unverified, which the contract and the "
            "server will then say too"
        )
    if precision == "int8" and wanted.calibrate is None and not wanted.tensorrt:
        raise UsageError("int8 takes its ranges from training images: name them with --calibrate TRAIN")


def _make(
    model: Path, precision: "Precision", wanted: Wanted, gate: Gate, force: bool, advance: Callable[[int, int], None]
) -> "Derived":
    from reidserve.export.derive import derive_flavour, derive_plan, prove_model

    batches = wanted.batches
    verification = gate.verification(precision)
    if wanted.tensorrt:
        return derive_plan(
            model,
            precision,
            batches=batches,
            timing_cache=_cache(wanted) / "tensorrt.timings",
            verification=verification,
            force=force,
            progress=advance,
        )
    if precision == "fp32":
        assert verification is not None
        return prove_model(model, verification=verification, progress=advance)
    return derive_flavour(
        model,
        precision,
        calibration=_calibration(wanted, gate, precision, verification),
        targets=("cpu", "tensorrt") if wanted.int8_for is None else (wanted.int8_for,),
        verification=verification,
        force=force,
        progress=advance,
    )


def _calibration(
    wanted: Wanted, gate: Gate, precision: "Precision", verification: "Verification | None"
) -> "Calibration | None":
    if wanted.calibrate is None:
        return None
    from reidserve.export.derive import Calibration, check_apart

    crops = _read_training(wanted.calibrate)
    if verification is not None:
        check_apart(crops, [*verification.query, *verification.gallery])
    budget = _BUDGETS[precision] if wanted.int8_budget is None else wanted.int8_budget
    return Calibration(crops=crops, budget=budget, seed=gate.seed, cache=_cache(wanted) / "ranges")


def _cache(wanted: Wanted) -> Path:
    from reidserve.export.files import cache_folder

    return wanted.cache if wanted.cache is not None else cache_folder()


def _read_training(source: Path) -> "list[Crop]":
    """Only the training part of a dataset, or all of a folder of crops."""
    from reidserve.datasets import read_crops, read_training

    return read_crops(source) if _is_folder_of_crops(source) else read_training(source)


def _read_parts(source: Path) -> "tuple[Sequence[Crop], Sequence[Crop]]":
    """Queries and gallery of a dataset; of a folder of crops, each is asked for among the others."""
    from reidserve.datasets import read_crops, read_dataset

    if _is_folder_of_crops(source):
        crops = read_crops(source)
        return crops, crops
    dataset = read_dataset(source)
    return dataset.query, dataset.gallery


def _is_folder_of_crops(source: Path) -> bool:
    """Whether images lie in the folder itself: in a dataset they lie in its parts."""
    from reidserve.datasets.folders import SUFFIXES

    return source.is_dir() and any(path.suffix.lower() in SUFFIXES for path in source.iterdir())


def _report(model: Path, made: "Derived", *, json: bool) -> None:
    """Print what was made."""
    from reidserve.datasets import path_to_text

    contract = made.contract
    if json:
        print_json(
            {
                "model": path_to_text(model),
                "identity": contract.identity,
                "files": made.files,
                "engines": made.engines,
                "contract": contract,
                "parity": made.parity,
                "remarks": made.remarks,
            }
        )
        return
    if made.remarks:
        print_lines([*made.remarks, ""])
    if made.parity is not None:
        show_parity(made.parity)
    facts: Mapping[str, Any] = {**contract.flavours, **contract.plans}
    print_facts(
        {
            "model": path_to_text(model),
            "identity": f"{contract.identity}, as before",
            "wrote": ", ".join(made.files) or "canaries and figures of fp32",
            "runs here on": ", ".join(made.engines) or "no engine but the reference",
            "kept in fp32": "; ".join(f"{name}: {_kept(facts[name])}" for name in made.files) or "all of it",
            "verified": "yes" if made.parity is not None else "NO: the contract and the server say so",
        }
    )


def _kept(facts: Any) -> str:  # noqa: ANN401  # a Flavour or a Plan
    kept = getattr(facts, "kept", ())
    return ", ".join(kept) if kept else "nothing beyond what always is"
