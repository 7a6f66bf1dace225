"""How to train: one dataclass, two instances of it."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal, get_args

Optimizer = Literal["adam", "sgd", "muon"]
Schedule = Literal["constant", "one-cycle"]
Precision = Literal["float32", "bf16", "auto"]
FirstLayer = Literal["random", "whitened", "separated"]

USUAL_IMAGES, USUAL_EPOCHS = 20_000, 10  # as documented
FINETUNE_SHARE = 0.4  # of the epochs of the other stages, if nobody says how many
SMALLEST_BATCH = 50  # up to twice that with more images: steps cost time, too
FEW_SHIFT = 2  # pixels by which few images are shifted to be more
FEW_TO_SHIFT = USUAL_IMAGES // 9  # whose nine versions are no more than usual
# Up to which what training the first layer gains, if anything, is not worth a third of the time.
SHORT_EPOCHS, FEW_EXAMPLES = 5, 60_000
MAX_SHIFT = 16  # half an image


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is trained, apart from the data and the seed.

    The defaults are those of the documented recipe: ``Recipe(lr=0.1)`` trains a head.
    ``dataclasses.replace(TUNED, lr=0.1)`` makes a variation, here of base and scratch: transfer and
    finetuning have learning rates of their own.

    What is of images or of layers, from ``normalize`` to ``mirror``, ``dropout`` and ``shift``, is
    done by the stages, not by `fit`.

    Attributes:
        name: How results call it.
        optimizer: ``"adam"``, ``"sgd"`` (with Nesterov momentum) or ``"muon"`` (see `Muon`).
        lr: The learning rate; the peak, if there is a schedule.
        schedule: ``"constant"`` or ``"one-cycle"``, up linearly and down to zero.
        normalize: Bring each colour channel to mean 0 and deviation 1; else only divide by 255.
        first_layer: What it starts as in base and scratch: ``"random"``, as documented;
            ``"whitened"``, as principal components (`whiten_first_layer`); or ``"separated"``, as
            independent ones, which stay and save a third of the time (`separate_first_layer`).
            None: separated in up to five epochs, or 60,000 examples, which are images times epochs;
            else whitened.
        mirror: Train on mirror images, too; None: if `Data.mirror` says that they show the same.
        epochs: How often each example is seen; None: as `epochs_for` computes it.
        batch_size: Examples in a step.
        weight_decay: An L2 penalty; for muon of weights only, apart from the gradient.
        momentum: Of the optimizer; for adam beta 1.
        warmup: The part of a one-cycle schedule in which the learning rate rises.
        precision: ``"float32"``, ``"bf16"``: autocast to bfloat16, or ``"auto"``: bfloat16 where
            the device has instructions for it.
        dropout: The rate of layer 6 while it trains; None: the network's own, as documented.
        shift: By how many pixels at most images are shifted at random while all of the network
            trains on them (`shift_randomly`); None: by one in up to ten epochs of 20,000 images or
            more, else by two. In a recipe of the stage transfer: its ``transfer_shift``.
        by_size: Take ``batch_size``, ``lr`` and ``weight_decay`` as meant for ten epochs of 20,000
            images, and change them for fewer: `for_images`.
        num_images: The training images that `for_images` has made it for; None: for any number.
        transfer_lr: The learning rate of the stage transfer.
        transfer_batch_size: Its batch size.
        transfer_dropout: Its rate of dropout.
        transfer_shift: By how many pixels its images are shifted to be further views of themselves,
            in eight directions (`make_views`); None: by two for up to 2,222 images, whose nine
            versions are no more than the usual 20,000, else by none.
        finetune_epochs: The epochs of the stage finetune; None: two fifths of the others.
        finetune_lr: Its learning rate; None: as `finetune_lr_for` computes it.
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
    num_images: int | None = None
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
        for name in ("epochs", "finetune_epochs", "batch_size", "transfer_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("lr", "transfer_lr", "finetune_lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if not (self.weight_decay >= 0 and 0 <= self.momentum < 1):
            raise ValueError("weight_decay must be at least 0, and momentum from 0 to below 1")
        for name in ("dropout", "transfer_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} must be from 0 to below 1, not {rate}")
        for name in ("shift", "transfer_shift"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_SHIFT:
                raise ValueError(f"{name} must be from 0 to {MAX_SHIFT} pixels, not {value}")
        if not 0 < self.warmup < 1:
            raise ValueError(f"warmup must be a fraction between 0 and 1, not {self.warmup}")

    def for_stage(self, stage: str, num_images: int | None = None) -> "Recipe":
        """Returns the recipe with the stage's own values, if it has any, in place of the others.

        For ``"finetune"``, ``finetune_lr`` becomes ``lr``. Base and scratch have none of their own.

        Args:
            stage: One of `STAGES`.
            num_images: The training images, for what depends on them: `for_images`. Without it
                that stays open, for `fit` to decide.

        Raises:
            ValueError: If something that only the stage knows depends on the number of images, and
                it is None; or if the recipe has been made for a number of images already.
        """
        self._check_plain()
        if stage == "finetune":
            return self._for_finetuning(num_images)
        prefix = f"{stage}_"
        values = {
            name.removeprefix(prefix): value
            for name, value in asdict(self).items()
            if name.startswith(prefix)
        }
        recipe = replace(self, **values)
        if stage == "transfer" and recipe.shift is None:
            if num_images is None:
                raise ValueError("what transfer does depends on num_images: say it")
            recipe = replace(recipe, shift=FEW_SHIFT if num_images <= FEW_TO_SHIFT else 0)
        return recipe if num_images is None else recipe.for_images(num_images)

    def _for_finetuning(self, num_images: int | None) -> "Recipe":
        epochs, lr, others = self.finetune_epochs, self.finetune_lr, self.epochs
        if num_images is not None:
            lr = lr or finetune_lr_for(num_images)
            others = others or epochs_for(num_images)
        if epochs is None and others is not None:
            epochs = max(1, round(FINETUNE_SHARE * others))
        if epochs is None or lr is None:
            raise ValueError("what finetune does depends on num_images: say it")
        recipe = replace(self, epochs=epochs, lr=lr)
        return recipe if num_images is None else recipe.for_images(num_images, FINETUNE_SHARE)

    def for_images(self, num_images: int, share: float = 1.0) -> "Recipe":
        """Returns the recipe with all decided that depends on the number of training images.

        That is the number of epochs, if it is None: `epochs_for`; how far images are shifted, and
        what the first layer starts as, if that is None; and, if the recipe goes ``by_size``:

        - the batch size, which falls with the examples seen in all epochs, so that there are enough
          steps, but to no less than 50, with more than 10,000 images a 200th part of them, and from
          20,000 on 100; with its root, the learning rate;
        - the weight decay, which rises with the fourth root of what the images are fewer.

        Args:
            num_images: The training images, at least one.
            share: Of the epochs of other trainings, those that are usual for this one.

        Raises:
            ValueError: If there are no images, or the recipe has been made for a number of them
                already.
        """
        self._check_plain()
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        epochs = self.epochs or epochs_for(num_images)
        usual = num_images >= USUAL_IMAGES and epochs <= USUAL_EPOCHS
        shift = (1 if usual else 2) if self.shift is None else self.shift
        is_short = epochs <= SHORT_EPOCHS or num_images * epochs <= FEW_EXAMPLES
        first_layer = self.first_layer or ("separated" if is_short else "whitened")
        recipe = replace(
            self, epochs=epochs, shift=shift, first_layer=first_layer, num_images=num_images
        )
        if not self.by_size:
            return recipe
        part = num_images * epochs / (USUAL_IMAGES * USUAL_EPOCHS * share)
        smallest = round(SMALLEST_BATCH * min(2, max(1, 2 * num_images / USUAL_IMAGES)))
        batch_size = min(self.batch_size, max(smallest, round(self.batch_size * part)))
        return replace(
            recipe,
            batch_size=batch_size,
            lr=self.lr * math.sqrt(batch_size / self.batch_size),
            weight_decay=self.weight_decay * max(1, USUAL_IMAGES / num_images) ** 0.25,
        )

    def _check_plain(self) -> None:
        if self.num_images is not None:
            raise ValueError(
                f"the recipe is made for {self.num_images} images: take the one before, as TUNED"
            )


def epochs_for(num_images: int) -> int:
    """Computes how many epochs so many training images ask for, if nobody says it.

    Ten from 20,000 on, as documented, and more for fewer, with the root of their number: ten epochs
    of 200 images are ten steps; the 1,000 that have as many steps as 20,000 images take ten times
    as long as these 100 and gain at most a point and a half (docs/recipe.md).
    """
    return min(150, max(USUAL_EPOCHS, round(USUAL_EPOCHS * math.sqrt(USUAL_IMAGES / num_images))))


def finetune_lr_for(num_images: int) -> float:
    """Computes the learning rate of finetuning with Muon on so many images, if nobody says it.

    That of the tuned recipe from scratch, and with fewer than 5,000 images less, with the root of
    their number: a few would make the network forget more than they teach.
    """
    return TUNED.lr * min(1.0, math.sqrt(num_images / 5_000))


# The ingredients, whose defaults change nothing. A run's settings leave these defaults out: what is
# added here later changes no run without it, neither its bytes nor whether it goes on.
INGREDIENTS = (
    *("schedule", "normalize", "first_layer", "mirror", "weight_decay"),
    *("precision", "dropout", "shift"),
)
NEUTRAL = {field.name: field.default for field in fields(Recipe) if field.name in INGREDIENTS}

# The recipe behind the documented figures. finetune_lr: the usual tenth of lr.
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


def rate_factor(recipe: Recipe, step: int, total_steps: int) -> float:
    """Computes what the peak learning rate is multiplied by in a step, counted from 0.

    It is a plain function, so there is no state to save. The one-cycle schedule rises linearly to
    the peak and falls linearly to zero, after Smith and Topin 2018, "Super-convergence"; a step
    takes the value at its middle, so none is zero.
    """
    if recipe.schedule == "constant":
        return 1.0
    position = (step + 0.5) / total_steps
    return min(position / recipe.warmup, (1 - position) / (1 - recipe.warmup))
