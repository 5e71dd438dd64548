"""What every command does alike: exit codes, errors in one line, results for people or machines, progress."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from cyclopts import App, CycloptsError, Parameter, Token
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reidserve.errors import ReidError, UsageError

DONE, FAILED, WRONG_USAGE = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT
SHOWN_FAILURES = 20

Device = Annotated[
    Literal["auto", "cpu", "cuda", "tensorrt", "openvino"],
    Parameter(
        help="What runs the model; what is not there is refused. auto takes a TensorRT plan that fits this GPU, else "
        "CUDA, else the CPU; the engine that it came to is printed."
    ),
]
Precision = Annotated[
    Literal["fp32", "fp16", "int8"],
    Parameter(help="Which flavour of the model runs; reid-export makes fp16 and int8."),
]
Pattern = Annotated[
    str | None,
    Parameter(
        show_default=False,
        help="A regular expression on the path below the folder, with the groups pid and camid, such as "
        r"'(?P<pid>\w+)_cam(?P<camid>\d)'.",
    ),
]
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([KMGT]?)(I?)(B?)")


def read_bytes(text: str) -> int:
    """The number of bytes that a text such as 8GB, 512MB, 1.5GiB or 4096 means; GB are 1e9 bytes, GiB 2**30.

    Raises:
        UsageError: it is no such text, or less than one byte.
    """
    found = _SIZE.fullmatch(text.strip().upper())
    if found is None or (found[3] and not found[2]):
        raise UsageError(f"expected a size such as 8GB, 512MB, 1.5GiB or bytes, got {text[:40]!r}")
    step = 1024 if found[3] else 1000
    size = int(float(found[1]) * step ** " KMGT".index(found[2] or " ")) if found[2] else int(float(found[1]))
    if size < 1:
        raise UsageError(f"expected a size of at least a byte, got {text[:40]!r}")
    return size


def write_bytes(size: int) -> str:
    """A number of bytes for people, such as 1.5 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def _read_size(_: type, tokens: Sequence[Token]) -> int:
    try:
        return read_bytes(tokens[0].value)
    except UsageError as error:
        raise ValueError(str(error)) from error


_AGE = re.compile(r"([0-9]{1,6}) *([hdw])")
_AGE_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def read_age(text: str) -> int:
    """The seconds that a text such as 30d, 12h or 8w means.

    Raises:
        UsageError: it is no such text.
    """
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"expected an age such as 30d, 12h or 8w, got {text[:40]!r}")
    return int(found[1]) * _AGE_SECONDS[found[2]]


def _read_age(_: type, tokens: Sequence[Token]) -> int:
    try:
        return read_age(tokens[0].value)
    except UsageError as error:
        raise ValueError(str(error)) from error


Age = Annotated[int | None, Parameter(converter=_read_age, show_default=False)]
Size = Annotated[int, Parameter(converter=_read_size)]
Memory = Annotated[
    int | None,
    Parameter(
        converter=_read_size,
        show_default=False,
        help="What the gallery's entries may take in memory where it is served, such as 8GB; a write that would "
        "take more is refused.",
    ),
]
Index = Annotated[
    Literal["auto", "flat", "flat-fp16", "rabitq"],
    Parameter(
        name="--index",
        help="How rows are searched: flat kinds are exact; rabitq is faster for large galleries and may miss a row.",
    ),
]
IndexDevice = Annotated[
    Literal["cpu", "gpu"], Parameter(name="--index-device", help="Where rows are searched; refused where it is not.")
]
Json = Annotated[bool, Parameter(negative="", help="Print the result as one JSON object, for machines.")]
Force = Annotated[bool, Parameter(negative="", help="Replace what is there already.")]

_EPILOGUE = (
    "Exit codes: 0 done, 1 failed or something was left out, 2 wrong usage, 130 interrupted. "
    "Results go to standard output, progress and errors to standard error."
)


def make_app(name: str, summary: str | None = None) -> App:
    """A command whose help says what its exit codes mean; the default function's docstring can be the summary."""
    return App(
        name=name,
        help=summary,
        help_epilogue=_EPILOGUE,
        version=version("reidserve"),
        help_format="plaintext",
        result_action="return_value",
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )


def run(app: App) -> NoReturn:
    """Run a command and end the process with its exit code; an expected failure is one line, never a traceback."""
    _open_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        sys.exit(app() or DONE)
    except CycloptsError as error:  # printed by cyclopts
        if _wants_json():
            print_json({"error": {"reason": UsageError.reason, "message": " ".join(str(error).split())}})
        sys.exit(WRONG_USAGE)
    except KeyboardInterrupt:
        sys.exit(_fail("INTERRUPTED", "interrupted", INTERRUPTED))
    except UsageError as error:
        sys.exit(_fail(error.reason, str(error), WRONG_USAGE))
    except ReidError as error:
        sys.exit(_fail(error.reason, str(error), FAILED))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "reidserve":
            raise
        sys.exit(
            _fail(
                "PACKAGE_MISSING",
                f"this needs the package {error.name}: install reidserve[cpu,onnx], [train] for checkpoints and [eval] "
                "for scores and reports",
                FAILED,
            )
        )
    except BrokenPipeError:
        # The reader of a pipe has left (head, less): nothing to say and nobody to say it to.
        sys.stderr.close()
        sys.exit(FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        sys.exit(_fail("SYSTEM_ERROR", f"{name}{error.strerror or error}", FAILED))


def _open_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Closed by the caller: nobody listens, and no file that is opened later may get its number.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        # A name that is not Unicode must not end a report half-way.
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _interrupt(number: int, frame: object) -> NoReturn:
    """Stop once, tidily: further Ctrl-C are ignored meanwhile, another SIGTERM ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def _wants_json() -> bool:
    return any(argument.partition("=")[0] == "--json" for argument in sys.argv)


def _fail(reason: str, message: str, code: int) -> int:
    # A file name that is not Unicode may be part of it.
    message = message.encode(errors="backslashreplace").decode()
    if _wants_json():
        print_json({"error": {"reason": reason, "message": message}})
    print(f"error: {message}", file=sys.stderr)
    return code


def quiet_grpc() -> None:
    """Keep gRPC's C core from writing lines of its own about failures that are reported anyway; before its import."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def print_json(result: Any) -> None:  # noqa: ANN401  # anything msgspec encodes
    """Print one JSON object on one line of standard output."""
    print(msgspec.json.encode(result).decode(), flush=True)


def print_lines(lines: Sequence[str]) -> None:
    """Print a result for people."""
    print("\n".join(lines), flush=True)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values for people, one a line, values in a column."""
    width = max(len(name) for name in facts)
    print_lines([f"{name:<{width}}  {value}" for name, value in facts.items()])


def warn_failures(failures: Sequence[tuple[str, str]]) -> None:
    """Name what was left out and why, a line each, on standard error."""
    for name, reason in failures[:SHOWN_FAILURES]:
        print(f"left out {name}: {reason}", file=sys.stderr)
    if len(failures) > SHOWN_FAILURES:
        print(f"left out {len(failures) - SHOWN_FAILURES} more (--json lists all)", file=sys.stderr)


def warn_engine(engine: str, *, device: str = "", unverified: bool) -> None:
    """Say on standard error what auto came to, and where the gate has not let through what an engine computes."""
    if device == "auto":
        print(f"--device auto came to {engine}", file=sys.stderr)
    if unverified:
        print(f"unverified: {engine} was not held to fp32 on data (reid-export --verify)", file=sys.stderr)


def warn_lines(lines: Sequence[str]) -> None:
    """Say what is wrong, a line each, on standard error."""
    for line in lines[:SHOWN_FAILURES]:
        print(line, file=sys.stderr)
    if len(lines) > SHOWN_FAILURES:
        print(f"and {len(lines) - SHOWN_FAILURES} more (--json lists all)", file=sys.stderr)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, only where a person watches; the block calls it with (done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
