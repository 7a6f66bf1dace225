"""Trains on CIFAR-10 and shows what transfer learning saves and costs: the command.

It parses arguments, prints, and turns errors and signals into exit codes: 0 done, 1 failed, 2 wrong
usage, 130 interrupted (Ctrl-C), 143 terminated. The work is done by the package cifar_tl, which is
imported only when the arguments are known to be good: torch takes seconds to import.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from cifar_tl import Data, Recipe

# Written here again because importing them would import torch; a test compares them.
STAGES = ("base", "transfer", "finetune", "scratch")
RECIPES = ("original", "tuned")
PRECISIONS = ("float32", "bf16")
SHAPES = "shapes"

DATA_FOLDER = "data"
MAX_THREADS = 256  # torch.set_num_threads(100000) crashes the process
OUT_OF_MEMORY = re.compile(  # in what torch, oneDNN and Python say
    "out of memory|can't allocate memory|could not create a primitive|can't start new thread"
)


class UsageError(Exception):
    """The arguments make no sense; the message says what to do."""


class Interrupt(KeyboardInterrupt):
    """Ctrl-C or a scheduler's SIGTERM; ``code`` is the exit code that stands for it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` instead of printing a usage text of many lines and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (try --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold any character
    try:
        options = parse_arguments(argv)
    except UsageError as error:
        return fail(error, 2)
    try:
        with signals_as_exceptions(), warnings.catch_warnings():
            warnings.showwarning = lambda text, *_, **__: warn(f"train.py: warning: {text}")
            return show_version() if options.version else train(options)
    except UsageError as error:
        return fail(error, 2)
    except Interrupt as caught:
        return fail(f"interrupted; {how_to_go_on(options)}", caught.code)
    except BrokenPipeError:
        # What could not be printed must not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return fail(f"nobody reads the output any more; {how_to_go_on(options)}", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}; {how_to_go_on(options)}", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        advice = "close other programs, or try smaller batches"
        return fail(f"out of memory: {advice}; {how_to_go_on(options)}", 1)


def train(options: argparse.Namespace) -> int:
    """Runs the stages; the arguments are good, so the slow imports begin."""
    check_output_dir(options.output_dir)

    with leaving_at_once(options):
        import torch

        import cifar_tl
        from cifar_tl import report, run

        torch.optim.SGD([torch.zeros(1)])  # the first optimizer imports more, also for seconds

    warnings.simplefilter("always", run.RunWarning)
    check_device(options.device, options.precision)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cifar_tl.keep_freed_memory()
    log: Callable[[str], None] = (lambda _: None) if options.quiet else say
    progress = sys.stderr is not None and sys.stderr.isatty() and not options.quiet
    recipe = choose_recipe(options)
    stages = stages_to_run(options)
    try:
        data, seconds_reading = read_data(options, log, progress)
        folder = options.output_dir / data.name
        for path in (folder, *(folder / stage for stage in stages)):
            if os.path.lexists(path):
                check_output_dir(path)
        log(
            f"data: {data.name} ({data.description}); recipe: {recipe.name}; seed: {options.seed}; "
            f"{torch.get_num_threads()} threads on {options.device}"
        )
        if options.restart:
            # Delete nothing if it could not be made anew.
            cifar_tl.stages.load_parent(
                stages[0], folder, data, options.base, options.train_fraction
            )
            run.discard(folder / stage for stage in stages)
            options.restart = False  # so that a command to go on does not delete again
        results = {}
        for stage in stages:
            results[stage] = cifar_tl.run_stage(
                stage,
                data,
                recipe,
                output_dir=options.output_dir,
                seed=options.seed,
                device=options.device,
                base=options.base if stage == "transfer" else None,
                train_fraction=1.0 if stage == "base" else options.train_fraction,
                seconds_reading=seconds_reading,
                log=log,
                progress=progress,
            )
            draw(folder / stage, data)
            say(f"{report.summary(results[stage])}; files in {folder / stage}")
        if options.stage == "all":
            comparison = report.compare(results)
            text = report.comparison_text(comparison)
            run.save_comparison(folder, comparison, text)
            draw(folder)
            say(f"\n{text}\nEverything was written to {folder}")
    except cifar_tl.RunError as error:
        remedy = f": {command(options, **error.remedy)}" if error.remedy else ""
        return fail(f"{error}{remedy}", 1)
    except cifar_tl.TrainingError as error:
        lower = f"{recipe.for_stage(stage).lr / 10:g}"
        return fail(f"{error}: {command(options, stage=stage, lr=lower, restart=True)}", 1)
    except (cifar_tl.DataError, cifar_tl.CheckpointError, cifar_tl.LockedError) as error:
        return fail(error, 1)
    if not has_matplotlib():
        log("For pictures of all this: pip install matplotlib, then the same command again")
    return 0


def draw(folder: Path, data: "Data | None" = None) -> None:
    """Draws the pictures of a stage, or without data the comparison's, if they are missing."""
    from cifar_tl import run

    names = (run.COMPARISON_PICTURE,) if data is None else run.PICTURES
    if not has_matplotlib() or all((folder / name).exists() for name in names):
        return
    try:
        from cifar_tl import plots

        if data is None:
            plots.draw_comparison(folder)
        else:
            plots.draw_stage(folder, data)
    except (run.HistoryError, ImportError) as error:  # cost pictures, nothing else
        reason, *_ = (str(error) or type(error).__name__).splitlines()
        warn(f"train.py: warning: no pictures in {folder}: {reason}")


def has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def read_data(
    options: argparse.Namespace, log: Callable[[str], None], progress: bool
) -> tuple["Data", float]:
    """Reads the data, downloading CIFAR-10 if need be; returns it and the seconds of reading."""
    import cifar_tl

    source = options.data or DATA_FOLDER
    start = time.perf_counter()
    try:
        return cifar_tl.load_data(source, progress=progress), time.perf_counter() - start
    except cifar_tl.MissingDataError:
        log(f"getting CIFAR-10 into {source}, 170 MB if it must be downloaded")
    try:
        cifar_tl.download_cifar10(source, progress=progress)
    except cifar_tl.DownloadError as error:
        # Never substitute what was asked for, or what this output folder has been about.
        if options.data is not None or (options.output_dir / cifar_tl.data.OFFICIAL).exists():
            raise
        line = "*" * 88
        warn(
            f"{line}\n{error}\n"
            "THIS RUN USES THE BUILT-IN SHAPES INSTEAD: its results say nothing about CIFAR-10.\n"
            f"{line}"
        )
        source = SHAPES
    start = time.perf_counter()
    return cifar_tl.load_data(source), time.perf_counter() - start


def choose_recipe(options: argparse.Namespace) -> "Recipe":
    """Returns the named recipe with what the arguments change of it."""
    from cifar_tl import RECIPES

    recipe = RECIPES[options.recipe]
    given = {
        field.name: value
        for field in dataclasses.fields(recipe)
        if field.name != "name" and (value := getattr(options, field.name, None)) is not None
    }
    given |= {
        f"{options.stage}_{name}": value
        for name, value in given.items()
        if f"{options.stage}_{name}" in vars(options)
    }
    return dataclasses.replace(recipe, **given)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments and checks what can be checked without importing torch."""
    options = make_parser().parse_args(argv)
    if options.data == "":
        raise UsageError("--data: is empty; leave it out to download CIFAR-10")
    check_own_settings(options)
    if options.data not in (None, SHAPES):
        path = Path(options.data)
        if not path.exists() and options.data != DATA_FOLDER:
            raise UsageError(
                f"--data {path}: there is no such file or folder; "
                "to download CIFAR-10, leave out --data or make the folder first"
            )
        if path.is_file() and path.suffix != ".npz":
            raise UsageError(f"--data {path}: name a folder, a .npz file or {SHAPES}")
        names = [entry.name for entry in path.glob("[!.]*")]
        if names and "train" not in names and not any(n.startswith("cifar-10") for n in names):
            raise UsageError(
                f"--data {path}: holds neither CIFAR-10 nor a folder train; classes of your own "
                f"belong into {path / 'train'}, a folder with images each, and CIFAR-10 is "
                "downloaded into an empty folder"
            )
    if has_own_classes(options):
        if options.stage == "base":
            raise UsageError(
                f"--stage base: a base model learns classes 0-4 of CIFAR-10, not {options.data}; "
                "its features then serve any classes: --stage transfer --base FILE"
            )
        if options.stage in ("all", "transfer") and options.base is None:
            raise UsageError(
                f"--data {options.data}: name the base model whose features to use, such as "
                "--base runs/cifar10/base/model.pt (python train.py --stage base makes it)"
            )
    if options.base is not None:
        if "transfer" not in stages_to_run(options) or "base" in stages_to_run(options):
            raise UsageError("--base names the base model of a transfer: add --stage transfer")
        if not options.base.is_file():
            raise UsageError(f"--base {options.base}: there is no such file")
    if options.train_fraction != 1 and options.stage == "base":
        raise UsageError("--train-fraction is for the other stages: base trains on all its images")
    return options


def check_own_settings(options: argparse.Namespace) -> None:
    """Refuses what would be ignored: a stage's own setting without the stage, or given twice."""
    for stage in STAGES:
        for name in [name for name in vars(options) if name.startswith(f"{stage}_")]:
            plain = name.removeprefix(f"{stage}_")
            flag, plain_flag = (f"--{word.replace('_', '-')}" for word in (name, plain))
            if getattr(options, name) is None:
                continue
            if options.stage not in ("all", stage):
                raise UsageError(f"{flag} is for {stage}: leave it out or add --stage {stage}")
            if options.stage == stage and getattr(options, plain) is not None:
                raise UsageError(f"{flag} and {plain_flag} mean the same here: leave out one")


def has_own_classes(options: argparse.Namespace) -> bool:
    """Tells whether the data is a folder with classes of the user's own, as load_data decides."""
    return options.data != SHAPES and (Path(options.data or DATA_FOLDER) / "train").is_dir()


def stages_to_run(options: argparse.Namespace) -> tuple[str, ...]:
    """Lists the stages in their order; there is no base model of one's own classes."""
    if options.stage != "all":
        return (options.stage,)
    return tuple(stage for stage in STAGES if stage != "base" or not has_own_classes(options))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser; None stands for the recipe's or torch's own default."""
    parser = Parser(
        prog="train.py",
        description="Trains a small network on CIFAR-10 classes 0-4 (base), a new classifier on "
        "its frozen features for classes 5-9 (transfer), everything for a few more epochs "
        "(finetune), and the same network from fresh weights as a control (scratch).",
        epilog="Run the same command again to go on where it stopped.",
    )
    add = parser.add_argument
    add(
        "--stage",
        choices=(*STAGES, "all"),
        default="all",
        help="what to run (default: all of them in this order, then a comparison)",
    )
    add("--recipe", choices=RECIPES, default="tuned", help="how to train (default: %(default)s)")
    add(
        "--data",
        metavar="SOURCE",
        help=f"a folder with CIFAR-10, downloaded if missing (default: {DATA_FOLDER}); a folder "
        "with classes of your own, images in train/CLASS/ and maybe val/CLASS/ and test/CLASS/; "
        f"a .npz file in the Keras layout; or {SHAPES}: built-in images",
    )
    add(
        "--base",
        metavar="FILE",
        type=Path,
        help="another base model for transfer; classes of your own need one",
    )
    add(
        "--epochs",
        metavar="N",
        type=at_least_one,
        help="epochs of base, transfer and scratch, or of the one --stage that is named (default "
        "here and below: the recipe's)",
    )
    add(
        "--lr",
        metavar="X",
        type=positive,
        help="(peak) learning rate of base and scratch, or of the one --stage that is named",
    )
    add(
        "--batch-size",
        metavar="N",
        type=at_least_one,
        help="images in a batch of base, finetune and scratch, or of the one --stage that is named",
    )
    add("--transfer-lr", metavar="X", type=positive, help="learning rate of transfer")
    add("--transfer-batch-size", metavar="N", type=at_least_one, help="batch size of transfer")
    add("--finetune-epochs", metavar="N", type=at_least_one, help="epochs of finetuning")
    add("--finetune-lr", metavar="X", type=positive, help="learning rate of finetuning")
    add("--weight-decay", metavar="X", type=not_negative, help="as the recipe's optimizer means it")
    add(
        "--precision",
        choices=PRECISIONS,
        help="bf16: autocast to bfloat16, for CUDA and CPUs with units for it (default: float32)",
    )
    add(
        "--train-fraction",
        metavar="X",
        type=fraction,
        default=1.0,
        help="train transfer, finetune and scratch on this part of their training images, "
        "the first of each class (default: all of them)",
    )
    add("--seed", metavar="N", type=at_least_zero, default=0, help="(default: %(default)s)")
    add("--device", metavar="NAME", default="cpu", help="such as cuda (default: %(default)s)")
    add("--threads", metavar="N", type=thread_count, help="(default: torch's choice)")
    add(
        "--output-dir",
        metavar="DIR",
        type=Path,
        default=Path("runs"),
        help="results are written to DIR/DATA/STAGE (default: %(default)s)",
    )
    add("--restart", action="store_true", help="first delete the results of the stages to run")
    add("--quiet", action="store_true", help="print only results, warnings and errors")
    add("--version", action="store_true", help="print the versions and exit")
    return parser


def command(options: argparse.Namespace, **changes: Any) -> str:
    """Writes the command that has these options, with some changed."""
    stage = changes.get("stage", options.stage)
    values = vars(options).copy()
    if stage != options.stage:  # what has another meaning in the other stage is left out
        both = (stage, options.stage)
        values |= {name: None for other in both for name in values if f"{other}_{name}" in values}
    if stage != "all":
        others = tuple(f"{other}_" for other in STAGES if other != stage)
        values |= {name: None for name in values if name.startswith(others)}
    values |= {f"{stage}_{name}": None for name in changes}
    values |= changes
    if stage == "base":
        values["train_fraction"] = 1.0
    if stage not in ("all", "transfer"):
        values["base"] = None
    words = ["python", "train.py"]
    for action in make_parser()._actions:
        value = values.get(action.dest, action.default)
        if value != action.default:
            words += [action.option_strings[0]] + ([] if value is True else [str(value)])
    return shlex.join(words)


def whole_number(text: str, low: int, high: int = 10**9) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {low} to {high}, not {text!r}"
        )
    return value


def at_least_one(text: str) -> int:
    return whole_number(text, 1)


def at_least_zero(text: str) -> int:
    return whole_number(text, 0)


def thread_count(text: str) -> int:
    return whole_number(text, 1, MAX_THREADS)


def not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e30:  # float32 ends at 3e38
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1e30, not {text!r}")
    return value


def fraction(text: str) -> float:
    value = not_negative(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, not {text!r}")
    return value


def positive(text: str) -> float:
    value = not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def check_output_dir(folder: Path) -> None:
    """Fails before any work is done if results could not be written at its end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # root may write whatever the permissions say
    except OSError as error:
        raise UsageError(
            f"--output-dir {folder}: nothing can be written there ({error.strerror})"
        ) from error


def check_device(name: str, precision: str | None) -> None:
    """Fails before any work is done if the device does not exist or lacks the precision."""
    import torch

    try:
        number = torch.zeros(1, device=name)
        number.item()  # a device without data, such as meta, has none
        if precision == "bf16":
            with torch.autocast(number.device.type, torch.bfloat16):
                (number @ number).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UsageError(f"--device {name}: cannot be used here ({reason})") from error


def how_to_go_on(options: argparse.Namespace) -> str:
    return f"what was finished is saved. To go on: {command(options)}"


@contextlib.contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handles signals in a function of ours and in the end as before, unless it came to leaving."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)


def signals_as_exceptions() -> contextlib.AbstractContextManager[None]:
    """Raises `Interrupt` on Ctrl-C or SIGTERM; another signal then ends the process at once."""
    # Whoever handles or ignores a signal already (a shell, for its background) is left alone.
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    numbers = [n for n, default in defaults.items() if signal.getsignal(n) is default]
    is_main = threading.current_thread() is threading.main_thread()  # only it may handle signals
    return handling(numbers if is_main else (), interrupt)


def leaving_at_once(options: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Ends the process on the first signal: an exception while torch is imported can crash it."""

    def leave_with_message(number: int, _: object) -> NoReturn:
        warn(f"train.py: interrupted; {how_to_go_on(options)}")
        leave(number, None)

    numbers = (signal.SIGINT, signal.SIGTERM)
    return handling([n for n in numbers if signal.getsignal(n) is interrupt], leave_with_message)


def interrupt(number: int, _: object) -> NoReturn:
    for handled in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(handled) is interrupt:
            signal.signal(handled, leave)
    raise Interrupt(number)


def leave(number: int, _: object) -> NoReturn:
    os._exit(128 + number)


def show_version() -> int:
    from importlib.metadata import version

    from cifar_tl import __version__

    say(f"cifar_tl {__version__}, torch {version('torch')}, torchvision {version('torchvision')}")
    return 0


def fail(message: object, code: int) -> int:
    warn(f"train.py: {message}")
    return code


def say(line: str) -> None:
    print(line, flush=True)


def warn(line: str) -> None:
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # if nobody reads errors either, the exit code tells
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
