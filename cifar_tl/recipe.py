"""How to train: a `Recipe` is what was asked, a `Plan` is what is done."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Optimizer = Literal["adam", "sgd", "muon"]
Schedule = Literal["constant", "one-cycle"]
ClassBalance = Literal["off", "even"]  # unequal classes count as they are, or all the same
Precision = Literal["float32", "bf16", "auto"]
FirstLayer = Literal["random", "whitened", "separated"]

USUAL_IMAGES, USUAL_EPOCHS = 20_000, 10  # as documented
FINETUNE_SHARE = 0.4  # finetune's epochs, as a part of the other stages' epochs
# Of finetune from a pretrained network: an epoch takes almost as long as a pass through all of it.
BACKBONE_EPOCHS, BACKBONE_LR = 5, 0.004
SMALLEST_BATCH = 50  # twice that from 20,000 images on: small batches cost time
FEW_SHIFT = 2  # pixels: few images are shifted to make more of them
FEW_TO_SHIFT = USUAL_IMAGES // 9  # their nine versions are no more than the usual images
# In a short training, a trained first layer gains too little for a third of the time.
SHORT_EPOCHS, FEW_EXAMPLES = 5, 60_000
MAX_SHIFT = 16  # half an image


@dataclass(frozen=True)
class Plan:
    """What is done in one stage on one number of images: a recipe with every field decided.

    `Recipe.for_stage` makes it. `Recipe` explains the fields, and these are different:

    Attributes:
        normalize: None: the stage starts from a model, and keeps its preprocessing.
        first_layer: None: the stage starts from a model, and keeps its first layer.
        precision: ``"auto"`` is left for the device to decide: `choose_precision`.
        shift: The largest random shift of each training image, in pixels.
        view_shift: The fixed shift of the further views of each image, in pixels: `make_views`.
    """

    name: str
    optimizer: Optimizer
    lr: float
    schedule: Schedule
    normalize: bool | None
    first_layer: FirstLayer | None
    mirror: bool
    epochs: int
    batch_size: int
    weight_decay: float
    momentum: float
    warmup: float
    precision: Precision
    dropout: float | None
    shift: int
    view_shift: int


@dataclass(frozen=True)
class Recipe:
    """How to train, apart from the data and the seed. Fields that are None are decided later.

    The defaults are those of the documented recipe: ``Recipe(lr=0.1)`` trains a head.
    ``dataclasses.replace(TUNED, lr=0.1)`` makes a variation. Its ``lr`` is for base and scratch,
    since transfer and finetune have learning rates of their own.

    The stages use ``normalize``, ``first_layer``, ``mirror``, ``dropout`` and ``shift``. `fit` does
    not: they concern images and layers.

    Attributes:
        name: The recipe's name in results.
        optimizer: ``"adam"``, ``"sgd"`` (with Nesterov momentum) or ``"muon"`` (see `Muon`).
        lr: The learning rate. With a schedule it is the peak.
        schedule: ``"constant"`` or ``"one-cycle"``: up linearly, then down to zero linearly.
        normalize: Bring each colour channel to mean 0 and deviation 1. False: divide by 255 only.
        first_layer: How the first layer starts in base and scratch. ``"random"``: as documented.
            ``"whitened"``: as principal components (`whiten_first_layer`). ``"separated"``: as
            independent components, which stay frozen and save a third of the time
            (`separate_first_layer`). None: separated if ``epochs <= 5`` or
            ``images * epochs <= 60_000``, else whitened.
        mirror: Train on mirror images, too. None: if the data allow it (`Data.mirror`).
        epochs: How often each example is seen. None: `epochs_for`.
        batch_size: Examples in a step.
        weight_decay: An L2 penalty. With muon it is for weights only, apart from the gradient.
        momentum: Of the optimizer. With adam it is beta 1.
        warmup: The part of a one-cycle schedule in which the learning rate rises.
        precision: ``"float32"``; ``"bf16"``: autocast to bfloat16; ``"auto"``: bfloat16 if the
            device has instructions for it, else float32.
        dropout: The rate of layer 6 in training. None: the network's own, as documented.
        shift: The largest random shift of an image in pixels, where the whole network trains
            (`shift_randomly`). None: 1 if ``images >= 20_000`` and ``epochs <= 10``, else 2.
        by_size: ``batch_size``, ``lr`` and ``weight_decay`` are for ten epochs of 20,000 images,
            and change with fewer: `for_images`.
        transfer_lr: The learning rate of transfer.
        transfer_batch_size: Its batch size.
        transfer_dropout: Its rate of dropout.
        transfer_shift: It also learns from images that are shifted by this many pixels in eight
            directions (`make_views`). None: 2 for up to 2,222 images, else 0.
        finetune_epochs: The epochs of finetune. None: two fifths of the others'.
        finetune_lr: Its learning rate. None: `finetune_lr_for`.
    """

    name: str = "own"
    optimizer: Optimizer = "adam"
    lr: float = 1e-3
    schedule: Schedule = "constant"
    normalize: bool = False
    first_layer: FirstLayer | None = "random"
    mirror: bool | None = False
    epochs: int | None = 10
    batch_size: int = 100
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: float = 0.2
    precision: Precision = "float32"
    dropout: float | None = None
    shift: int | None = 0
    by_size: bool = False
    transfer_lr: float = 1e-3
    transfer_batch_size: int = 100
    transfer_dropout: float | None = None
    transfer_shift: int | None = 0
    finetune_epochs: int | None = 3
    finetune_lr: float | None = 1e-4

    def __post_init__(self) -> None:
        choices = {
            "optimizer": get_args(Optimizer),
            "schedule": get_args(Schedule),
            "precision": get_args(Precision),
            "first_layer": (*get_args(FirstLayer), None),
        }
        for name, choice in choices.items():
            if getattr(self, name) not in choice:
                allowed = ", ".join(map(str, choice))
                raise ValueError(f"{name} must be one of {allowed}, not {getattr(self, name)!r}")
        pixels = f"from 0 to {MAX_SHIFT} pixels"
        ranges: list[tuple[tuple[str, ...], Callable[[float], bool], str]] = [
            (("epochs", "finetune_epochs"), lambda value: value >= 1, "at least 1"),
            (("batch_size", "transfer_batch_size"), lambda value: value >= 1, "at least 1"),
            (("lr", "transfer_lr", "finetune_lr"), lambda value: value > 0, "above 0"),
            (("weight_decay",), lambda value: value >= 0, "at least 0"),
            (("momentum",), lambda value: 0 <= value < 1, "from 0 to below 1"),
            (("dropout", "transfer_dropout"), lambda value: 0 <= value < 1, "from 0 to below 1"),
            (("shift", "transfer_shift"), lambda value: 0 <= value <= MAX_SHIFT, pixels),
            (("warmup",), lambda value: 0 < value < 1, "between 0 and 1"),
        ]
        open_ones = {field.name for field in fields(self) if type(None) in get_args(field.type)}
        for names, is_right, words in ranges:
            for name in names:
                value = getattr(self, name)
                if value is None and name in open_ones:
                    continue
                if value is None or not is_right(value):
                    raise ValueError(f"{name} must be {words}, not {value}")

    def for_stage(self, stage: str, num_images: int, *, mirror: bool = False) -> Plan:
        """Takes the values of a stage, and decides all that is open.

        Args:
            stage: ``"base"`` or ``"scratch"`` take the plain values, ``"transfer"`` and
                ``"finetune"`` their own.
            num_images: The number of training images, at least 1.
            mirror: Mirror images show the same class. It counts if the recipe leaves that open.

        Raises:
            ValueError: If there is no such stage, or no image.
        """
        if stage not in STAGES_WITH_VALUES:
            known = ", ".join(STAGES_WITH_VALUES)
            raise ValueError(f"a recipe has no values for a stage {stage!r}: choose among {known}")
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        if stage == "transfer":
            return self._for_transfer(num_images, mirror)
        if stage == "finetune":
            return self._for_finetune(num_images, mirror)
        return self._decide(num_images, 1.0, mirror)

    def for_backbone(self) -> "Recipe":
        """Takes the values for a pretrained network, whose images are large.

        Each view of each image costs a pass through that network. So transfer has no shifted
        images, unless the recipe names a shift. Finetune learns from maps, which are not shifted,
        and drops as many features as transfer. If the recipe leaves its epochs and its rate
        open, they are `BACKBONE_EPOCHS` and `BACKBONE_LR`.
        """
        return replace(
            self,
            dropout=self.transfer_dropout,
            shift=0,
            transfer_shift=self.transfer_shift or 0,
            finetune_epochs=self.finetune_epochs or (None if self.epochs else BACKBONE_EPOCHS),
            finetune_lr=self.finetune_lr or BACKBONE_LR,
        )

    def for_images(self, num_images: int) -> Plan:
        """Makes the plan of base and scratch: `for_stage` without mirror images."""
        return self.for_stage("base", num_images)

    def _for_transfer(self, num_images: int, mirror: bool) -> Plan:
        recipe = replace(
            self,
            lr=self.transfer_lr,
            batch_size=self.transfer_batch_size,
            dropout=self.transfer_dropout,
            shift=0,  # the frozen features of an image are computed once
        )
        shift = self.transfer_shift
        if shift is None:
            shift = FEW_SHIFT if num_images <= FEW_TO_SHIFT else 0
        plan = recipe._decide(num_images, 1.0, mirror)
        return replace(plan, view_shift=shift, normalize=None, first_layer=None)

    def _for_finetune(self, num_images: int, mirror: bool) -> Plan:
        usual = self.epochs or epochs_for(num_images)
        recipe = replace(
            self,
            epochs=self.finetune_epochs or max(1, round(FINETUNE_SHARE * usual)),
            lr=self.finetune_lr or finetune_lr_for(num_images),
        )
        plan = recipe._decide(num_images, FINETUNE_SHARE, mirror)
        return replace(plan, normalize=None, first_layer=None)

    def _decide(self, num_images: int, share: float, mirror: bool) -> Plan:
        """Decides what depends on the number of training images.

        If the recipe goes ``by_size``, with ``part = images * epochs / (20_000 * 10 * share)``::

            batch_size = max(clamp(images / 200, 50, 100), batch_size * part), at most batch_size
            lr = lr * sqrt(new batch_size / old batch_size)
            weight_decay = weight_decay * max(1, 20_000 / images) ** 0.25

        Args:
            num_images: The number of training images.
            share: The usual epochs of this stage, as a part of the usual ten.
            mirror: Mirror images show the same class.
        """
        epochs = self.epochs or epochs_for(num_images)
        is_usual = num_images >= USUAL_IMAGES and epochs <= USUAL_EPOCHS
        is_short = epochs <= SHORT_EPOCHS or num_images * epochs <= FEW_EXAMPLES
        batch_size, lr, weight_decay = self.batch_size, self.lr, self.weight_decay
        if self.by_size:
            part = num_images * epochs / (USUAL_IMAGES * USUAL_EPOCHS * share)
            smallest = round(SMALLEST_BATCH * min(2, max(1, 2 * num_images / USUAL_IMAGES)))
            batch_size = min(batch_size, max(smallest, round(batch_size * part)))
            lr *= math.sqrt(batch_size / self.batch_size)
            weight_decay *= max(1, USUAL_IMAGES / num_images) ** 0.25
        names = [field.name for field in fields(Plan) if field.name != "view_shift"]
        same: dict[str, Any] = {name: getattr(self, name) for name in names}
        decided: dict[str, Any] = {
            "lr": lr,
            "first_layer": self.first_layer or ("separated" if is_short else "whitened"),
            "mirror": mirror if self.mirror is None else self.mirror,
            "epochs": epochs,
            "batch_size": batch_size,
            "weight_decay": weight_decay,
            "shift": (1 if is_usual else 2) if self.shift is None else self.shift,
            "view_shift": 0,
        }
        return Plan(**same | decided)


# The stages whose values a recipe holds. Every row of the table of stages uses those of one.
STAGES_WITH_VALUES = ("base", "scratch", "transfer", "finetune")


def epochs_for(num_images: int) -> int:
    """Computes the default number of epochs: ``10 * sqrt(20_000 / images)``, from 10 to 150.

    Few images need more epochs: ten epochs of 200 images are ten steps. With 200 images, 1,000
    epochs have as many steps as ten epochs of 20,000 images. They take ten times as long as the
    100 that this gives, and gain at most 1.5 points (benchmarks/tried.md).
    """
    return min(150, max(USUAL_EPOCHS, round(USUAL_EPOCHS * math.sqrt(USUAL_IMAGES / num_images))))


def finetune_lr_for(num_images: int) -> float:
    """Computes the default rate of finetune: ``0.04 * sqrt(images / 5_000)``, at most 0.04.

    At a higher rate, a few images make the network forget more than they teach.
    """
    return TUNED.lr * min(1.0, math.sqrt(num_images / 5_000))


# Ingredients: their defaults change nothing, and the settings of a run leave these defaults out.
# So a new ingredient changes no older run: neither its bytes nor that it goes on.
INGREDIENTS = (
    *("schedule", "normalize", "first_layer", "mirror", "weight_decay"),
    *("precision", "dropout", "shift"),
)
NEUTRAL = {field.name: field.default for field in fields(Recipe) if field.name in INGREDIENTS}

# The recipe behind the documented figures. finetune_lr: the usual tenth of lr.
# The figures are by Keras. It adds Adam's eps before it corrects the bias, torch adds it after. So
# with the same 1e-7 the first step differs by up to 0.7 of the rate where gradients are tiny.
ORIGINAL = Recipe(name="original")

# docs/recipe.md says what each of these is worth.
TUNED = Recipe(
    name="tuned",
    optimizer="muon",
    lr=0.04,
    schedule="one-cycle",
    normalize=True,
    first_layer=None,
    mirror=None,
    epochs=None,
    batch_size=200,
    weight_decay=0.2,
    precision="auto",
    dropout=0.0,
    shift=None,
    by_size=True,
    transfer_lr=0.05,
    transfer_batch_size=500,
    transfer_dropout=0.2,
    transfer_shift=None,
    finetune_epochs=None,
    finetune_lr=None,
)

RECIPES = {recipe.name: recipe for recipe in (ORIGINAL, TUNED)}


def rate_factor(plan: Recipe | Plan, step: int, total_steps: int) -> float:
    """Computes the factor of the peak learning rate in a step, counted from 0.

    A plain function has no state to save. The one-cycle schedule rises linearly to the peak, then
    falls linearly to zero (Smith and Topin 2018, "Super-convergence"). A step takes the value at
    its middle, so that no step has rate zero.
    """
    if plan.schedule == "constant":
        return 1.0
    position = (step + 0.5) / total_steps
    return min(position / plan.warmup, (1 - position) / (1 - plan.warmup))
