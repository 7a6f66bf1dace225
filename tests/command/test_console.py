"""The manners of all commands: signals, closed pipes, full disks, terminals without letters.

Real processes, real signals, real write errors.
"""

import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cifar_tl.__main__ import COMMANDS
from cifar_tl.checkpoint import save_model
from cifar_tl.command import evaluate
from cifar_tl.data.classes import CIFAR10_CLASS_NAMES
from cifar_tl.data.source import load_data
from cifar_tl.errors import DataWarning
from cifar_tl.network import CifarNet
from tests.forked import CLOSED_PIPE, PATIENCE, ROOT, Command, one_line, run_forked, run_program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes")

# What takes for ever: the evaluation stops where it reads the model, the export where it writes.
FOR_EVER = """
def take_for_ever(*_, **__):
    print("at work", flush=True)
    time.sleep(1e6)
{} = take_for_ever
"""
BUSY = {"evaluate": FOR_EVER.format("torch.load"), "export": FOR_EVER.format("os.fsync")}
SUMMER = "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}"


@pytest.fixture
def work(small_npz: Path) -> dict[str, list[str]]:
    """For each command, arguments in the present folder; two keep it busy for a long while."""
    torch.manual_seed(0)
    settings = {"classes": [5, 6, 7, 8, 9], "class_names": list(CIFAR10_CLASS_NAMES[5:])}
    save_model(Path("model.pt"), CifarNet(10), settings)
    Image.new("RGB", (40, 40), "red").save("picture.png")
    training = ["--data", str(small_npz), "--stage", "base", "--epochs", "1000"]
    return {
        "train": [*training, "--threads", "1", "--batch-size", "20"],
        "predict": ["--model", "model.pt", *["picture.png"] * 5000],
        "evaluate": ["model.pt", "--data", str(small_npz)],
        "export": ["model.pt", "out"],
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_is_one_line_and_its_exit_code(
    zygote: subprocess.Popen[str],
    work: dict[str, list[str]],
    command: str,
    number: signal.Signals,
    code: int,
) -> None:
    process = Command(zygote, [command, *work[command]], before=BUSY.get(command, ""))
    first = {"train": "epoch ", "predict": "picture.png: "}
    process.wait_until_printed(first.get(command, "at work"))
    process.send(number)
    errors = process.end(code)
    assert errors.startswith(f"cifar-tl {command}: interrupted")
    assert ("To go on: cifar-tl train --data" in errors) is (command == "train")
    assert not list(Path().rglob("*.tmp"))
    assert not list(Path().glob("out.*pt2"))


@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGUSR1", 128 + signal.SIGUSR1)])
def test_what_batch_systems_and_closed_terminals_send_ends_it_too(
    zygote: subprocess.Popen[str], work: dict[str, list[str]], name: str, code: int
) -> None:
    process = Command(zygote, ["train", *work["train"]])
    process.wait_until_printed("epoch ")
    process.send(getattr(signal, name))
    assert "interrupted; what was finished is saved. To go on: cifar-tl" in process.end(code)


def test_an_ignored_signal_stays_ignored(
    zygote: subprocess.Popen[str], work: dict[str, list[str]]
) -> None:
    nohup = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = Command(zygote, ["train", *work["train"]], before=nohup)
    process.wait_until_printed("epoch ")
    process.send(signal.SIGHUP)
    process.wait_until_printed("epoch ", Path("out.txt").read_text().count("epoch ") + 2)
    process.send(signal.SIGTERM)
    process.end(143)


def test_a_signal_that_comes_while_python_frees_an_object_is_not_lost(
    zygote: subprocess.Popen[str], work: dict[str, list[str]]
) -> None:
    before = """
class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
def take_for_ever(*_, **__):
    Freed()
    time.sleep(1e6)
torch.load = take_for_ever
"""
    errors = Command(zygote, ["evaluate", *work["evaluate"]], before=before).end(143)
    assert errors == "cifar-tl evaluate: interrupted\n"


@pytest.mark.parametrize("words", [["train.py"], ["-m", "cifar_tl", "train"]])
def test_a_process_of_our_own_ends_at_once_while_torch_is_imported(
    small_npz: Path, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "torch").mkdir()  # its import takes for ever
    Path(tmp_path, "torch/__init__.py").write_text(
        "import time\nprint('importing')\nimport sys; sys.stdout.flush(); time.sleep(1e6)\n"
    )
    process = subprocess.Popen(
        [sys.executable, *words, "--data", str(small_npz), "--output-dir", str(tmp_path / "runs")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143
    assert ": interrupted; what was finished is saved. To go on: " in one_line(errors)


@pytest.mark.parametrize(("event", "function"), [("return", "handle_signals"), ("call", "_end")])
def test_a_signal_before_or_after_the_command_is_its_exit_code(event: str, function: str) -> None:
    program = f"""
import os, signal, sys
from cifar_tl.__main__ import start
def stop(frame, event, _):
    if event == "{event}" and frame.f_code.co_name == "{function}":
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGTERM)
sys.argv[1:] = ["--help"]
sys.setprofile(stop)
start()
"""
    process = run_program("-c", program)
    assert (process.returncode, process.stderr) == (143, "")


def test_a_stop_is_not_lost_if_torch_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import signal, warnings\n"
        "warnings.filterwarnings('ignore', 'of torch')\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "signal.raise_signal(signal.SIGINT)\n"
        "raise ImportError('it is broken')\n"
    )
    (tmp_path / "cat.png").touch()
    program = """
import signal, sys, warnings
sys.path.insert(0, ".")
came = []
def handler(number, _):
    came.append(number)
    if number == signal.SIGTERM:
        raise RuntimeError
signal.signal(signal.SIGINT, handler)
signal.signal(signal.SIGTERM, handler)
from cifar_tl.__main__ import main
try:
    main(["predict", "cat.png"])
except RuntimeError:
    pass
assert came == [signal.SIGTERM, signal.SIGINT]
assert any("of torch" in str(kind) for kind in warnings.filters)  # they are for later imports
"""
    process = run_program("-c", program, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


NOT_OURS = """
import runpy
def handlers():
    return [signal.getsignal(number) for number in signal.valid_signals()]
def stop():
    while not os.path.exists("runs/small.npz/base/last.pt"):
        time.sleep(0.01)
    signal.raise_signal(signal.SIGINT)
import os, signal, sys, threading, time
before = handlers()
threading.Thread(target=stop).start()
try:
    {start}
except KeyboardInterrupt:
    pass
else:
    raise AssertionError("it was not stopped")
assert handlers() == before
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    "start",
    ["main(['train', *sys.argv[1:]])", f"runpy.run_path('{ROOT}/train.py', run_name='__main__')"],
)
def test_in_somebody_else_s_process_an_interruption_is_an_exception(
    zygote: subprocess.Popen[str], work: dict[str, list[str]], start: str
) -> None:
    program = "from cifar_tl.__main__ import main" + NOT_OURS.format(start=start)
    process = Command(zygote, work["train"], program=program)
    errors = process.end(-signal.SIGTERM)  # as if we had never been there
    assert "interrupted; what was finished is saved. To go on: cifar-tl train" in errors


# What a command may change only for as long as it runs.
LEFT_AS_IT_WAS = """
import logging, os, random, signal, sys, threading, warnings
import numpy, torch
from cifar_tl.__main__ import main

def state():
    loggers = [logging.getLogger(), logging.getLogger("PIL"), logging.getLogger("torch")]
    streams = (sys.stdout, sys.stderr)
    return {
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": (sys.unraisablehook, sys.excepthook, sys.displayhook, threading.excepthook),
        "streams": [(s, s.errors, s.encoding, s.line_buffering) for s in streams],
        "warnings": (warnings.showwarning, warnings.formatwarning, list(warnings.filters)),
        "logging": [(list(logger.handlers), logger.level) for logger in loggers],
        "system": (dict(os.environ), os.getcwd(), list(sys.argv), list(sys.path)),
        "threads": (torch.get_num_threads(), threading.enumerate()),
        "torch": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.backends.mkldnn.enabled,
            torch.is_autocast_enabled("cpu"),
        ),
        "random": (random.getstate(), str(numpy.random.get_state())),
        "torch's random": torch.get_rng_state().tolist(),
    }

torch.set_num_threads(2)
sys.stdout.reconfigure(errors="strict")
before = state()
for line in (
    ["--help"],
    ["train", "--fly"],
    ["predict", "picture.png", "none.png"],
    ["evaluate", "model.pt", "--data", sys.argv[2]],
    ["export", "model.pt", "out"],
    ["train", *sys.argv[1:], "--epochs", "1"],
    ["train", *sys.argv[1:], "--epochs", "2"],  # refused after the data were read
):
    main(line)
    after = state()
    assert after == before, {name: (before[name], after[name]) for name in after
        if after[name] != before[name]}
"""


def test_somebody_else_s_process_is_left_as_it_was(
    zygote: subprocess.Popen[str], work: dict[str, list[str]]
) -> None:
    run_forked(zygote, LEFT_AS_IT_WAS, *work["train"])
    assert Path("runs/small.npz/base/model.pt").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_nobody_reads_the_output(
    zygote: subprocess.Popen[str], work: dict[str, list[str]], command: str
) -> None:
    errors = Command(zygote, [command, *work[command]], output=CLOSED_PIPE).end(1)
    assert errors.startswith(f"cifar-tl {command}: nobody reads the output any more")
    assert ("; what was finished is saved. To go on: " in errors) is (command == "train")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_under_the_output_is_one_line(
    zygote: subprocess.Popen[str], work: dict[str, list[str]], command: str
) -> None:
    errors = Command(zygote, [command, *work[command]], output="/dev/full").end(1)
    assert errors.startswith(f"cifar-tl {command}: {os.strerror(errno.ENOSPC)}")


@pytest.mark.parametrize("words", [[], *([command] for command in COMMANDS)])
@pytest.mark.parametrize("output", ["/dev/full", CLOSED_PIPE])
def test_help_that_cannot_be_printed_is_one_line(words: list[str], output: str) -> None:
    if output == CLOSED_PIPE:
        reader, writer = os.pipe()
        os.close(reader)
        reason = "nobody reads the output any more"
    elif Path(output).exists():
        writer, reason = os.open(output, os.O_WRONLY), os.strerror(errno.ENOSPC)
    else:
        pytest.skip(f"needs {output}")
    process = subprocess.run(
        [sys.executable, "-m", "cifar_tl", *words, "--help"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert process.returncode == 1
    called = " ".join(["python", "-m", "cifar_tl", *words])
    assert one_line(process.stderr) == f"{called}: {reason}\n"


def test_names_that_the_terminal_cannot_show(
    zygote: subprocess.Popen[str], own_classes: Path
) -> None:
    shutil.copytree(own_classes / "train" / "ash", f"{SUMMER}/train/{SUMMER}")
    shutil.copytree(own_classes / "train" / "Birch", f"{SUMMER}/train/Birch")
    for path in Path(SUMMER, "train").rglob("*.*"):  # pictures of the same size, none twice
        test = Path(SUMMER, "test", *path.parts[2:])
        test.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.rotate(180).save(test)
    model = f"runs/{SUMMER}/scratch/model.pt"
    for arguments, expected in (
        (["train", "--data", SUMMER, "--stage", "scratch", "--epochs", "1"], "files in runs/@"),
        (["predict", f"{SUMMER}/train/{SUMMER}", "--model", model], "@/train/@/00.png: "),
        (["evaluate", model, "--data", SUMMER], "test images of @: accuracy"),
        (["export", model, SUMMER], "@.pt2: for torch.export.load"),
    ):
        process = Command(zygote, arguments, encoding="ascii")
        assert process.exit_code() == 0
        assert Path("errors.txt").read_text() == ""
        assert expected.replace("@", r"\xe9t\xe9") in Path("out.txt").read_text("ascii")


def test_errors_never_go_to_standard_output() -> None:
    for arguments in ("train --epochs none", "predict", "evaluate none.pt", "export none.pt out"):
        command = f"exec {sys.executable} -m cifar_tl {arguments} 2>&-"
        process = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (process.returncode, process.stdout) == (2, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_standard_output_is_refused_before_any_work(
    zygote: subprocess.Popen[str], work: dict[str, list[str]], command: str
) -> None:
    before = set(Path().iterdir())
    errors = Command(zygote, [command, *work[command]], before="sys.stdout = None").end(2)
    assert errors.startswith(f"cifar-tl {command}: standard output is closed: send it somewhere")
    assert {path.name for path in set(Path().iterdir()) - before} <= {"out.txt", "errors.txt"}


def test_a_shell_that_closes_the_output() -> None:
    command = f"exec {sys.executable} -m cifar_tl predict tests/cifar10.png >&-"
    process = subprocess.run(["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert process.returncode == 2
    assert "standard output is closed" in one_line(process.stderr.decode())


@pytest.mark.skipif(sys.platform == "win32", reason="needs ulimit")
def test_no_folder_for_temporary_files_says_what_to_set(tiny_npz: Path) -> None:
    """As in a read-only container: Python finds no folder where it can write a few bytes."""
    command = f"ulimit -f 0; exec {sys.executable} -m cifar_tl train --data {tiny_npz}"
    command += " --recipe original"  # torch's own optimizers import what needs such a folder
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # torch has set it in this process
    process = subprocess.run(
        ["sh", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    errors = one_line(process.stderr)
    assert "train: there is no folder for temporary files: set TMPDIR to one" in errors


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_too_little_memory_to_import_torch_is_one_line() -> None:
    command = f"ulimit -v 300000; exec {sys.executable} -m cifar_tl predict tests/cifar10.png"
    process = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert "raise the limit of memory (ulimit -v unlimited)" in one_line(process.stderr)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
@pytest.mark.parametrize("end", ["os.abort()", "os._exit(1)", "raise SystemError"])
def test_torch_that_ends_the_process_close_to_the_limit_is_one_line(
    tmp_path: Path, end: str
) -> None:
    (tmp_path / "torch.py").write_text(f"import os\nos.write(2, b'terminate called\\n')\n{end}\n")
    command = f"ulimit -c 0; ulimit -v 9000000; exec {sys.executable} -m cifar_tl"
    process = subprocess.run(
        ["sh", "-c", f"{command} predict tests/cifar10.png"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert "(not under this limit of memory): raise the limit of memory" in one_line(process.stderr)


def test_too_few_descriptors_are_no_damage_of_the_data(
    zygote: subprocess.Popen[str], small_npz: Path
) -> None:
    program = """
import resource, sys
from cifar_tl import load_data
load_data(sys.argv[1])  # imports what it needs
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    load_data(sys.argv[1])
except OSError as error:
    assert error.filename == sys.argv[1]
    assert error.strerror.endswith(": close some, or raise the limit (ulimit -n)")
else:
    raise AssertionError
"""
    run_forked(zygote, program, str(small_npz))


def test_what_pillow_logs_is_not_printed(zygote: subprocess.Popen[str]) -> None:
    Image.new("RGB", (40, 40)).save("many.tif")
    content = Path("many.tif").read_bytes()
    samples = struct.pack("<HHI", 277, 3, 1)
    place = content.index(samples) + len(samples)
    Path("many.tif").write_bytes(content[:place] + struct.pack("<H", 2048) + content[place + 2 :])
    errors = Command(zygote, ["predict", "many.tif"]).end(1)  # one line
    assert "many.tif is no readable image (Invalid value for samples per pixel)" in errors


@pytest.mark.filterwarnings("always")
def test_the_command_drops_pillow_s_warnings_and_no_others(
    own_classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(own_classes, "own")
    exif = b"Exif\0\0MM\0*" + bytes(3) + b"\x08\0\x09"  # nine entries are announced, none comes
    Image.new("RGB", (40, 40), "red").save("own/train/ash/damaged.jpg", exif=exif)
    Path("own/train/ash/notes.txt").touch()
    with pytest.warns(UserWarning, match="orrupt EXIF"), pytest.warns(DataWarning, match="1 .txt"):
        load_data("own")  # the library drops none
    assert evaluate.main(["cifar5", "--data", "own"]) == 1
    left_out, error = capsys.readouterr().err.splitlines()
    assert "evaluate: warning: own: not used: 1 file (1 .txt)" in left_out
    assert "cifar5 knows the classes 0 airplane" in error
