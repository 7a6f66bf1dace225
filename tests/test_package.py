"""The package as other projects see it, its inner order, and the documents as readers use them."""

import ast
import compileall
import graphlib
import importlib
import inspect
import json
import pickle
import pkgutil
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.models import get_model_weights

import cifar_tl
from cifar_tl.__main__ import COMMANDS, main
from cifar_tl.command.train_arguments import check_arguments
from cifar_tl.data import shapes
from cifar_tl.data.cifar10 import download_cifar10
from cifar_tl.published import make_network
from tests.forked import ROOT, run_program

PUBLIC: list[str] = importlib.import_module("cifar_tl").__all__

# What is imported


def test_import_loads_neither_torch_nor_numpy(tmp_path: Path) -> None:
    script = (
        "import sys, cifar_tl\n"
        "assert cifar_tl.__version__ and 'fit' in dir(cifar_tl) and 'fit' in cifar_tl.__all__\n"
        "assert not hasattr(cifar_tl, 'nothing')\n"
        "cifar_tl.TUNED, cifar_tl.CifarTLError, cifar_tl.STAGES, cifar_tl.Frame()\n"
        "assert not {'torch', 'numpy', 'torchvision', 'PIL'} & set(sys.modules)\n"
    )
    process = run_program("-c", script, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")


def test_every_public_name_is_there_and_explained() -> None:
    for name in PUBLIC:
        value = getattr(cifar_tl, name)
        if inspect.isroutine(value) or inspect.isclass(value):
            assert value.__doc__, name
            assert not value.__doc__.startswith(f"{name}("), name  # made by dataclass


def test_names_are_found_in_every_usual_way() -> None:
    assert len(PUBLIC) > 30
    assert not [name for name in PUBLIC if name.startswith("_")]
    assert {*PUBLIC, "__version__", "__doc__"} <= set(dir(cifar_tl))
    star: dict[str, object] = {}
    exec("from cifar_tl import *", star)
    assert set(PUBLIC) <= star.keys()
    assert all(star[name] is getattr(cifar_tl, name) for name in PUBLIC)
    text = pydoc.plain(pydoc.render_doc(cifar_tl))
    assert all(re.search(rf"\b{name}\b", text) for name in PUBLIC)
    with pytest.raises(AttributeError, match=r"^module 'cifar_tl' has no attribute 'nothing'$"):
        _ = cifar_tl.nothing  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'cifar_tl'"):
        exec("from cifar_tl import nothing")


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(Path(cifar_tl.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    modules = {name: f"cifar_tl.{module}" for name, module in cifar_tl._MODULES.items()}
    assert {name: seen[name] for name in PUBLIC} == modules
    assert {name for name in seen if name and not name.startswith("_")} == set(PUBLIC)


def test_a_package_without_sources_works(tmp_path: Path) -> None:
    package = tmp_path / "cifar_tl"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert compileall.compile_dir(package, quiet=1, legacy=True)
    for path in package.rglob("*.py"):
        path.unlink()
    script = "import cifar_tl; assert cifar_tl.TUNED.name == 'tuned' and 'fit' in dir(cifar_tl)"
    process = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert process.returncode == 0


def test_public_classes_and_values_can_be_pickled() -> None:
    for name in PUBLIC:
        value = getattr(cifar_tl, name)
        if inspect.isclass(value):
            assert pickle.loads(pickle.dumps(value)) is value
    assert pickle.loads(pickle.dumps(cifar_tl.TUNED)) == cifar_tl.TUNED


def test_importing_the_modules_hides_no_public_name(tmp_path: Path) -> None:
    assert not {module.name for module in pkgutil.iter_modules(cifar_tl.__path__)}.intersection(
        PUBLIC
    )
    script = (
        "import importlib, importlib.util, pkgutil, cifar_tl\n"
        "before = {name: getattr(cifar_tl, name) for name in cifar_tl.__all__}\n"
        "imported = 0\n"
        "for module in pkgutil.walk_packages(cifar_tl.__path__, 'cifar_tl.'):\n"
        "    last = module.name.rpartition('.')[2]\n"
        "    if last == 'plots' and not importlib.util.find_spec('matplotlib'): continue\n"
        "    if last != '__main__':\n"
        "        importlib.import_module(module.name)\n"
        "        imported += 1\n"
        "assert imported > 30\n"
        "changed = [name for name in before if getattr(cifar_tl, name) is not before[name]]\n"
        "assert not changed, changed\n"
    )
    process = run_program("-c", script, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")


# The order of the rooms

WINGS = ("command", "experiment", "processes", "data")
PACKAGE = Path(cifar_tl.__file__).parent
DOORS = ("cifar_tl", "cifar_tl.__main__")  # which lead everywhere


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(name: str) -> set[str]:
    """The modules of the package that one of them imports, wherever in it, and if but for types."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                for alias in node.names:
                    module = f"{node.module}.{alias.name}"
                    yield module if module in MODULES else str(node.module)

    return {found for found in names() if found in MODULES}


def wing(name: str) -> str:
    """The wing that a module is in, or "" for the core."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else ""


def test_every_module_says_what_it_is() -> None:
    assert len(MODULES) > 30
    for name, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


def test_imports_go_one_way() -> None:
    forbidden = {
        "": WINGS,
        "data": ("processes", "experiment", "command"),
        "processes": ("data", "experiment", "command"),
        "experiment": ("command",),
    }
    for name in MODULES.keys() - set(DOORS):
        found = imports(name)
        for wrong in forbidden.get(wing(name), ()):
            assert not [other for other in found if wing(other) == wrong], name
        if wing(name) == "data":
            assert not found & {
                f"cifar_tl.{core}" for core in ("network", "freezing", "training", "evaluation")
            }, name
    assert imports("cifar_tl.command.train") > {"cifar_tl.experiment.stages", "cifar_tl.errors"}


def test_no_modules_import_each_other() -> None:
    graph = {name: imports(name) - {name} for name in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


def test_the_map_names_every_file_and_no_other() -> None:
    """The map in README.md, and the files that it leaves out in CONTRIBUTING.md."""
    more = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    trees = [
        re.findall(r"[\w/]+\.py", text[text.index(start) :].split("```")[1])
        for text, start in ((README, "## The map"), (more, "## Inside the folders"))
    ]
    named = [Path(name).name for tree in trees for name in tree]
    assert len(named) == len(set(named))
    files = {path.name for path in MODULES.values()}
    doors = {"documented.py", "hubconf.py", "train.py"}
    assert {*named, *(f"{command}.py" for command in COMMANDS)} == files | doors


# The documents

README = (ROOT / "README.md").read_text(encoding="utf-8")
LIBRARY = ROOT / "docs" / "library.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = [ROOT / "README.md", LIBRARY, ROOT / "docs" / "package.md"]
EXAMPLES = [
    pytest.param(example, id=f"{path.name}-{number}")
    for path in WITH_EXAMPLES
    for number, example in enumerate(
        re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    )
]
PROGRAM = r"(python train\.py|python -m cifar_tl|cifar-tl)"


def commands_in(text: str) -> list[list[str]]:
    """The commands in the code of a text, each with the word that names it first."""
    code = "\n".join(re.findall(r"```\n.*?```|`[^`\n]+`", text, flags=re.DOTALL))
    found = []
    for program, line in re.findall(
        rf"(?:^|`|&& ){PROGRAM}( [^`\n#&]*)?", code, flags=re.MULTILINE
    ):
        words = shlex.split(line)
        if program == "python train.py":
            words = ["train", *words]
        if words:
            found.append(words)
    return found


@pytest.fixture(scope="module")
def runs(own_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with results on a tenth of the built-in images, which the examples read."""
    folder = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(shapes, "draw_shapes", partial(shapes.draw_shapes, 1_200, 240))
        for stage in ("base", "transfer"):
            arguments = ["train", "--stage", stage, "--data", "shapes", "--epochs", "8", "--quiet"]
            assert main([*arguments, "--output-dir", str(folder / "runs")]) == 0
        (folder / "hubconf.py").symlink_to(ROOT / "hubconf.py")  # as in a clone
        shutil.copytree(own_classes, folder / "flowers")
        put_random_weights(monkeypatch, folder)
        yield folder


def put_random_weights(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Puts random weights where the downloaded ones of a network would be."""
    monkeypatch.setenv("TORCH_HOME", str(folder / "home"))
    name = "mobilenet_v3_small"
    url: str = get_model_weights(name).DEFAULT.url
    path = folder / "home" / "hub" / "checkpoints" / Path(url).name
    path.parent.mkdir(parents=True)
    torch.save(make_network(name, 224).state_dict(), path)


def test_what_the_examples_read_has_learned_shapes_well_above_chance(runs: Path) -> None:
    """A real training, if a short one."""
    found = {
        stage: json.loads((runs / "runs/shapes" / stage / "result.json").read_text())
        for stage in ("base", "transfer")
    }
    assert found["base"]["val_accuracy"] > 0.45  # chance is 0.2; 0.83 with two seeds
    assert found["transfer"]["val_accuracy"] > 0.25  # 0.52 with two seeds


@pytest.mark.filterwarnings("ignore:.* does not hold the published weights")  # they are random
@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(
    example: str, runs: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    if not Path("photo.jpg").exists():
        Image.new("RGB", (50, 40), "red").save("photo.jpg")
    if not Path("data").exists():
        Path("data").mkdir()
        (Path("data") / CIFAR10.filename).write_bytes(archive)
        download_cifar10("data")
    exec(example, {"__name__": "__main__"})


def test_example_of_the_docstring_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    example = "\n".join(re.findall(r"^    (.*)", cifar_tl.__doc__ or "", flags=re.MULTILINE))
    assert "fit(" in example
    exec(f"from cifar_tl import *\n{example}", {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_understood(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10.npz").touch()
    Path("flowers/train").mkdir(parents=True)
    Path("dogs").mkdir()
    commands = commands_in(path.read_text(encoding="utf-8"))
    for command, *words in commands:
        assert command in COMMANDS
        if not words and command != "train":
            continue  # it is only named
        for model in (Path(word) for word in words if word.endswith("model.pt")):
            model.parent.mkdir(parents=True, exist_ok=True)
            model.touch()
        if {"--help", "--version"} & {*words}:
            assert main([command, *words]) == 0
            assert capsys.readouterr().out
            continue
        module = importlib.import_module(f"cifar_tl.command.{command}")
        options = module.make_parser().parse_args(words)
        if command == "train":
            check_arguments(options)


def test_documents_show_commands() -> None:
    counts = {path.name: len(commands_in(path.read_text(encoding="utf-8"))) for path in DOCUMENTS}
    assert counts["README.md"] > 10
    assert counts["commands.md"] > 10
    assert {words[0] for words in commands_in(README)} == set(COMMANDS)


def test_readme_commands_for_own_classes_and_trained_models_run(
    own_classes: Path,
    archive: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    (Path("data") / CIFAR10.filename).write_bytes(archive)
    shutil.copytree(own_classes, "flowers")
    shutil.copy(own_classes / "train" / "ash" / "01.jpg", "photo.jpg")
    shutil.copytree("flowers/train/Birch", "holiday")
    section = README[README.index("## Your own pictures") : README.index("## Use it")]
    section += README[README.index("### A trained model") : README.index("## What a run leaves")]
    lines = re.findall(rf"^{PROGRAM} (.*)", section, flags=re.MULTILINE)
    commands = [shlex.split(line, comments=True) for _, line in lines]
    assert [command for command, *_ in commands] == [
        *("train", "predict", "train", "predict"),
        *("predict", "predict", "evaluate", "export"),
    ]
    few = ["--epochs", "2"]
    put_random_weights(monkeypatch, tmp_path)
    for number, words in enumerate(commands):
        if number == 4:
            assert main(["train", "--stage", "base", *few]) == 0
            assert main(["train", "--stage", "transfer", *few]) == 0
        capsys.readouterr()
        assert main([*words, *few] if words[0] == "train" else words) == 0
        output = capsys.readouterr().out
        if words[0] == "predict":
            assert output.startswith("photo.jpg: ")
            assert len(output.splitlines()) == (11 if number == 4 else 1)
    assert Path("transfer.pt2").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]+)?\)", text):
        target = path.parent / link if link else path
        assert target.exists(), link
        if link.endswith(".png"):
            with Image.open(target) as picture:
                assert min(picture.size) > 300
        if heading:
            assert heading in headings(target.read_text(encoding="utf-8")), link
    assert "FEW" not in text  # a figure that is to be filled in


def headings(text: str) -> list[str]:
    """What links to the headings of a document end with."""
    found = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    return ["#" + re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found]


def test_readme_has_what_was_promised() -> None:
    assert len(re.findall(r"\]\((?!https?:)", README)) > 5
    assert len(EXAMPLES) > 3
    assert "pip install -r requirements.txt && python train.py\n" in README
    assert "pip install -r requirements-dev.txt && python -m pytest\n" in README
    assert "Learning Multiple Layers of Features from Tiny Images" in README
    assert "ten outputs" in README
