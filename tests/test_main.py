"""The first word of the command, and the words with which its messages say what to type."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import cifar_tl
from cifar_tl.__main__ import COMMANDS, main
from cifar_tl.checkpoint import save_model
from cifar_tl.network import CifarNet
from tests.forked import ROOT, one_line, run_program

NOTHING_HEAVY = "assert not {'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "cifar-tl: the following arguments are required: COMMAND (try --help)"),
        (["fly"], "invalid choice: 'fly'"),
        (["Train"], "invalid choice: 'Train'"),
        (["--fly"], "cifar-tl: "),
        ([""], "invalid choice: ''"),
    ],
)
def test_without_a_command_it_is_wrong_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert message in one_line(errors)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(COMMANDS) == ["train", "predict", "evaluate", "export"]
    assert main(["--help"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    for name, does in COMMANDS.items():
        assert re.search(rf"^ +{name} +{does}$", output, flags=re.MULTILINE)
    assert "--version" in output


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_version_names_the_versions(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [command]), "--version"]) == 0
    output, errors = capsys.readouterr()
    assert re.fullmatch(
        rf"cifar_tl {cifar_tl.__version__}, torch [\d.]+\S*, torchvision [\d.]+\S*\n", output
    )
    assert errors == ""


def test_help_and_wrong_usage_do_not_import_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from cifar_tl.__main__ import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    assert main([command, '--help']) == 0\n"
        "    assert main([command, '--version']) == 0\n"
        "    assert main([command, '--unknown']) == 2\n"
        "for wrong in (['train', '--data', 'none.npz'], ['train', '--epochs', 'x'], \n"
        "    ['predict', 'a.png', '--model', 'none.pt'], ['evaluate', 'none.pt'],\n"
        "    ['export', 'none.pt', 'out'], []):\n"
        "    assert main(wrong) == 2\n"
        f"{NOTHING_HEAVY}\n"
    )
    process = run_program("-c", script, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert len(process.stderr.splitlines()) == 10
    for command in COMMANDS:
        assert f"usage: cifar-tl {command} " in process.stdout
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_files_is_said_without_torch(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    save_model(model, CifarNet(5), {})
    model.write_bytes(model.read_bytes()[:1000] + b"!" + model.read_bytes()[1001:])
    shutil.copy(model, tmp_path / "picture.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "own/train/one").mkdir(parents=True)
    (tmp_path / "damaged/shapes/base").mkdir(parents=True)
    shutil.copy(model, tmp_path / "damaged/shapes/base/model.pt")
    expected = {
        "evaluate model.pt --data shapes": (1, "model.pt is damaged, or no checkpoint"),
        "predict picture.png --model model.pt": (1, "model.pt is damaged, or no checkpoint"),
        "export model.pt out": (1, "model.pt is damaged, or no checkpoint"),
        "train --data shapes --stage transfer": (
            1,
            "there is no base model runs/shapes/base/model.pt: make it first: "
            "cifar-tl train --data shapes --stage base",
        ),
        "train --data shapes --stage transfer --output-dir damaged": (
            1,
            "model.pt is damaged, or no checkpoint of this program: use another; or "
            "make it anew: cifar-tl train --data shapes --stage base --output-dir damaged "
            "--restart",
        ),
        "train --data own --base model.pt": (
            1,
            "own/train holds only one class: there must",
        ),
        "train --data empty.npz --stage finetune": (
            1,
            "there is no transfer model runs/empty.npz/transfer/model.pt: make it first",
        ),
    }
    (tmp_path / "empty.npz").touch()
    script = (
        "import sys\n"
        "from cifar_tl.__main__ import main\n"
        f"for line, (code, _) in {expected!r}.items():\n"
        "    assert main(line.split()) == code, line\n"
        f"{NOTHING_HEAVY}\n"
    )
    process = run_program("-c", script, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for line, (_, message) in zip(process.stderr.splitlines(), expected.values(), strict=True):
        assert message in line
    assert not (tmp_path / "runs").exists()


def test_evaluating_on_what_lacks_cifar10_is_refused_without_torch(tmp_path: Path) -> None:
    save_model(tmp_path / "model.pt", CifarNet(5), {})
    (tmp_path / "data").mkdir()
    script = (
        "import sys\n"
        "from cifar_tl.__main__ import main\n"
        "for more in ([], ['--data', '.']):\n"
        "    assert main(['evaluate', 'model.pt', *more]) == 2\n"
        f"{NOTHING_HEAVY}\n"
    )
    process = run_program("-c", script, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "CIFAR-10 is not in data: name the model's data with --data" in process.stderr


def python_path() -> str:
    """A PATH where ``python`` is this one."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def paste(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Types a command that a message suggests."""
    environment = {**os.environ, "PATH": python_path()}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def check_spelling(
    words: Sequence[str], arguments: Sequence[str], called: str, train: str, path: str | None = None
) -> None:
    """A message begins with the words that were typed, and what it suggests can be pasted."""
    process = subprocess.run(
        [*words, *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode in (1, 2)
    assert process.stdout == ""
    errors = one_line(process.stderr)
    assert errors.startswith(f"{called}: ")
    suggested = re.search(rf"(?:make one with |make it first: )({re.escape(train)}[^)\n]*)", errors)
    assert suggested is not None, errors
    pasted = paste(f"{suggested[1]} --help", ROOT)
    assert (pasted.returncode, pasted.stderr) == (0, "")
    assert pasted.stdout.split("[options]")[0].split() == ["usage:", *train.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "words",
    [
        ["train.py"],
        [str(ROOT / "train.py")],
        ["-m", "cifar_tl", "train"],
        ["-W", "error", "-m", "cifar_tl", "train"],
    ],
)
def test_train_speaks_as_it_was_called(words: list[str]) -> None:
    arguments = ["--data", "shapes", "--stage", "transfer", "--output-dir", "none"]
    called = " ".join(["python", *words])  # whatever its whole path is
    check_spelling([sys.executable, *words], arguments, called, called, python_path())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.skipif(not Path(ROOT, "cifar_tl").exists(), reason="needs a clone")
def test_a_clone_is_used_from_another_folder(tmp_path: Path) -> None:
    """Where ``python -m cifar_tl`` would not find it."""
    environment = {**os.environ, "PYTHONPATH": ""}
    script = [sys.executable, str(ROOT / "train.py")]
    process = subprocess.run(
        [*script, "evaluate", "none.pt"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert one_line(process.stderr).startswith(f"python {script[1]} evaluate: ")
    assert f" {script[1]}\n" in process.stderr  # how to train


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_others_speak_as_they_were_called(command: str) -> None:
    arguments = {"predict": ["a.png", "--model", "none.pt"], "evaluate": ["none.pt"]}
    program = "python -m cifar_tl"
    check_spelling(
        [sys.executable, *program.split()[1:], command],
        arguments.get(command, ["none.pt", "out"]),
        f"{program} {command}",
        f"{program} train",
        python_path(),
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_python_that_the_shell_does_not_find_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho another Python\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = [sys.executable, "-m", "cifar_tl"]
    process = subprocess.run(
        [*command, "evaluate", "none.pt"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    errors = one_line(process.stderr)
    assert errors.startswith("python -m cifar_tl evaluate: ")  # short, as in --help
    assert errors.endswith(f"make one with {' '.join(command)} train\n")  # can be pasted


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_the_installed_command_speaks_as_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cifar-tl"  # as pip writes it
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom cifar_tl.__main__ import start\nsys.exit(start())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    arguments = ["evaluate", "none.pt"]
    check_spelling([str(program)], arguments, f"{program} evaluate", f"{program} train")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    check_spelling(["cifar-tl"], arguments, "cifar-tl evaluate", "cifar-tl train")


SCRIPT, IS_CLONE = str(ROOT / "train.py"), (ROOT / "cifar_tl").exists()
TRAIN = SCRIPT if IS_CLONE else "-m cifar_tl train"
EVALUATE = f"{SCRIPT if IS_CLONE else '-m cifar_tl'} evaluate"
TRANSFER = ["train", "--data", "shapes", "--stage", "transfer"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX path")
@pytest.mark.parametrize(
    ("argv", "words", "called"),
    [
        (["/ipykernel_launcher.py", "-f", "x"], TRANSFER, TRAIN),
        (["program.py"], ["evaluate", "none.pt"], EVALUATE),
        (["train.py", *TRANSFER[1:]], TRANSFER, "train.py"),  # as %run sets it
    ],
)
def test_another_program_names_the_command_only_if_it_is_on_the_path(
    argv: list[str], words: list[str], called: str, tmp_path: Path
) -> None:
    program = f"""
import sys
from cifar_tl.__main__ import main
sys.argv = {argv}
main({words})
"""
    process = run_program("-c", program, cwd=tmp_path)
    assert one_line(process.stderr).startswith(f"cifar-tl {words[0]}: ")
    assert " cifar-tl train" in process.stderr
    (tmp_path / "empty").mkdir()
    program = f"import os\nos.environ['PATH'] = 'empty'\n{program}"
    process = run_program("-c", program, cwd=tmp_path)
    assert one_line(process.stderr).startswith(f"python {called}: ")
    train = called if words[0] == "train" else TRAIN
    assert f" {sys.executable} {train}" in process.stderr  # it can be pasted


@pytest.mark.skipif(not Path(ROOT, "cifar_tl").exists(), reason="needs a clone")
def test_without_packages_it_says_how_to_install_them(tmp_path: Path) -> None:
    required = Path(ROOT, "requirements.txt").read_text().split()
    names = " ".join(line.partition(">=")[0] for line in required)
    for words in ([str(ROOT / "train.py")], ["-m", "cifar_tl", "predict"], ["-m", "cifar_tl"]):
        process = run_program("-S", *words, "--data", "shapes", cwd=tmp_path)
        assert process.returncode == 2
        assert process.stdout == ""
        assert one_line(process.stderr).endswith(f" -m pip install {names}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "door",
    ["run_path('train.py', run_name='__main__')", "_run_module_as_main('cifar_tl')"],  # python -m
)
def test_an_old_python_says_so_in_a_line(door: str) -> None:
    script = f"import runpy, sys; sys.version_info = (3, 9); runpy.{door}"
    process = run_program("-c", script, cwd=ROOT)
    assert process.returncode == 1
    assert "cifar_tl needs Python 3.10 or newer, and this is 3." in one_line(process.stderr)
    for path in (ROOT / "train.py", Path(cifar_tl.__file__)):  # which it must be able to read
        ast.parse(path.read_text(), feature_version=(3, 7))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_stays_in_one_line(command: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "cifar_tl", command, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "50"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = process.stdout.splitlines()
    examples = [place for place, line in enumerate(lines) if "such as: " in line]
    assert examples
    for place in examples:
        assert lines[place].startswith(f"  such as: python -m cifar_tl {command} ")
        assert lines[place + 1] == ""  # and it does not go on
    assert max(map(len, lines[lines.index("") : examples[0]])) <= 50  # the description is filled


def test_train_py_is_a_door_to_train() -> None:
    for words in (["train.py"], ["-m", "cifar_tl", "train"]):
        process = run_program(*words, "--help", cwd=ROOT)
        assert (process.returncode, process.stderr) == (0, "")
        assert "--train-fraction X" in process.stdout
