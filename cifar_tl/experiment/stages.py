"""The table of stages: what each starts from, learns and trains; and where its files are."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # the commands' help needs this module, and no torch
    from cifar_tl.data.examples import Data

EVERYTHING: Literal["everything"] = "everything"
HEAD: Literal["the classifier"] = "the classifier"  # on frozen features


@dataclass(frozen=True)
class Stage:
    """A row of the table: everything about a stage.

    Attributes:
        parent: The stage whose model it starts from. None: it starts from fresh weights.
        learns: It learns the base classes or the new classes.
        trains: `EVERYTHING` or `HEAD`.
        words: What it does, in a sentence.
        colour: Of its lines in pictures.
        marker: Of its points in pictures, as matplotlib names it.
        control: It is what transfer is compared with. One row is.
    """

    parent: str | None
    learns: Literal["base", "new"]
    trains: Literal["everything", "the classifier"]
    words: str
    colour: str
    marker: str
    control: bool = False

    @property
    def recipe(self) -> Literal["base", "transfer", "finetune"]:
        """Whose values of the recipe it uses: `Recipe.for_stage`."""
        if self.trains == HEAD:
            return "transfer"
        return "base" if self.parent is None else "finetune"


# Okabe and Ito 2008, "Color Universal Design": colour-blind people can tell these colours apart.
BLACK, BLUE, ORANGE, GREY = "#000000", "#0072B2", "#D55E00", "#777777"

STAGES = {  # in an order in which they can run
    "base": Stage(
        parent=None,
        learns="base",
        trains=EVERYTHING,
        words="The network learns the base classes.",
        colour=GREY,
        marker="D",
    ),
    "transfer": Stage(
        parent="base",
        learns="new",
        trains=HEAD,
        words="The base model is frozen, but for its classifier. Only a new classifier learns.",
        colour=BLUE,
        marker="o",
    ),
    "finetune": Stage(
        parent="transfer",
        learns="new",
        trains=EVERYTHING,
        words="The transfer model goes on with nothing frozen.",
        colour=ORANGE,
        marker="^",
    ),
    "scratch": Stage(
        parent=None,
        learns="new",
        trains=EVERYTHING,
        words="The control: the documented network learns from fresh weights.",
        colour=BLACK,
        marker="s",
        control=True,
    ),
}

OUTPUT_DIR = "runs"
MODEL = "model.pt"  # the finished model
LAST = "last.pt"  # all that is needed to go on after the last finished epoch
HISTORY = "history.csv"  # a row for each epoch
RESULT = "result.json"  # for programs; written last: where it is, the run is finished
RUNS = "runs.csv"  # all runs below the output folder, for programs
RESULTS = "results.txt"  # for people
FILES = (HISTORY, LAST, RESULTS, MODEL, RESULT)  # in the order of writing
PICTURES = (  # drawn afterwards; not every network has filters to show
    *("curves.png", "confusion.png", "samples.png", "reliability.png", "filters.png"),
)
COMPARISON = ("comparison.json", "comparison.txt")  # of all stages, beside their folders
COMPARISON_PICTURES = ("comparison.png", "images.png")  # the second for several fractions
BASES = ("bases.json", "bases.txt")  # of several bases, in the folder of the data
FEATURES = "features"  # a folder beside those of the stages: what frozen networks see
PICTURE_CACHE = "pictures"  # another: decoded pictures
REPORT = "report.html"  # all of that in one file


class Place(NamedTuple):
    """Where the stages of one experiment have folders: ``[BASE/]STAGE[/fraction-X][/seed-N]``."""

    folder: Path  # ``OUTPUT_DIR/DATA``
    train_fraction: float = 1.0
    seed: int | None = None  # None: there is one seed only
    backbone: str | None = None  # the pretrained network that is the base, if it is one
    control_is_backbone: bool = False  # the control is that network, too, from fresh weights

    @property
    def comparison(self) -> Path:
        """The folder of the comparison of the stages."""
        return self.folder / self.backbone.replace("/", "-") if self.backbone else self.folder

    def of(self, stage: str) -> Path:
        """Returns the folder of a stage. Base has all images, so no fraction is in its name.

        Stages that start from a pretrained network have folders below its name. A control that
        trains this network has, too.
        """
        is_of_backbone = STAGES[stage].parent is not None or self.control_is_backbone
        above = self.comparison if is_of_backbone else self.folder
        folder = above / stage
        if self.train_fraction != 1 and STAGES[stage].learns == "new":
            folder /= f"fraction-{self.train_fraction}"
        return folder if self.seed is None else folder / f"seed-{self.seed}"


def way_to(stage: str) -> tuple[str, ...]:
    """Lists the stages on the new classes that lead to a stage's model, itself the last."""
    parent = STAGES[stage].parent
    before = way_to(parent) if parent else ()
    return (*before, stage) if STAGES[stage].learns == "new" else ()


def way_name(stage: str) -> str:
    """Names the way to a stage's model, such as ``transfer+finetune``. Of base it is empty."""
    return "+".join(way_to(stage))


def takes_base(stage: str) -> bool:
    """Returns whether a stage starts from a base model. It may come from other data."""
    parent = STAGES[stage].parent
    return parent is not None and STAGES[parent].learns == "base"


def control() -> str:
    """Returns the name of the stage that the others are compared with."""
    (name,) = (name for name, stage in STAGES.items() if stage.control)  # exactly one
    return name


def stage_classes(stage: str, data: "Data") -> tuple[int, ...]:
    """Returns the classes that a stage learns."""
    return data.base_classes if STAGES[stage].learns == "base" else data.new_classes
