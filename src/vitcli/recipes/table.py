"""Recipes: functions from the facts of a run to a complete configuration.

`small` and `finetune` are ours; the others are published, and their docstrings name the table they restate.
A recipe decides everything; `--config`, `--set` and the options then replace single values.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Collection
from dataclasses import replace

from vitcli.config import (
    Config,
    apply,
    format_size,
)
from vitcli.errors import UsageError, did_you_mean
from vitcli.recipes.facts import Facts, is_long, is_tiny, shaped
from vitcli.recipes.ours import finetune, small
from vitcli.recipes.published import (
    augreg,
    bit_hyperrule,
    deit,
    deit3,
    paper_finetune,
    paper_i1k,
    paper_i21k,
    paper_jft,
)


def evaluated_as_trained(config: Config, asked: Collection[str] = ()) -> Config:
    """`config` with evaluation showing what training showed, unless eval.resize or eval.crop are among the keys `asked`.

    The crops `none`, `pad` and `random` take the whole image, squashed to the model's size, so evaluation squashes it
    too and cuts nothing off. `resized` crops have the shape that they have in the image, as has the centre of one whose
    short side is resized. Small images of 16 x 48 px whose class only shows in their outer sixth had 0.79 where
    training saw the border and evaluation did not.
    """
    crops = config.augment.crop == "resized"
    wanted = {"eval.resize": "short"} if crops else {"eval.resize": "square", "eval.crop": 1.0}
    return apply(config, {key: value for key, value in wanted.items() if key not in asked})


RECIPES: dict[str, Callable[[Facts], Config]] = {
    "small": small,
    "finetune": finetune,
    "paper-jft": paper_jft,
    "paper-i21k": paper_i21k,
    "paper-i1k": paper_i1k,
    "paper-finetune": paper_finetune,
    "bit-hyperrule": bit_hyperrule,
    "augreg": augreg,
    "deit": deit,
    "deit3": deit3,
}
"""By the name that `--recipe` takes."""
TUNING = frozenset({"finetune", "paper-finetune", "bit-hyperrule"})
"""Those that start from trained weights."""
OURS = frozenset({"small", "finetune"})
"""Those that are not published, which an objective may change as it likes."""


def default_recipe(facts: Facts) -> str:
    """`finetune` from trained weights, else `small`. A published recipe is taken when it is asked for: its model and batch are
    those of the machines that it was published with.
    """
    return "finetune" if facts.parent is not None or facts.command == "finetune" else "small"


_FEW_PHOTOGRAPHS, _FEW_OF_A_CLASS = 3000, 50
"""Images, of more than 64 px, or of a class, below which training from scratch is warned of."""
_WARMUP = 0.1
"""Part of a run that takes the place of a published warm-up that is longer than the run."""


def fitted_to_data(config: Config, facts: Facts, asked: Collection[str] = ()) -> tuple[Config, list[str]]:
    """(`config` with a warm-up that ends within the run, warnings of what does not suit the data).

    Raises UsageError where a batch or a warm-up that was asked for, by a key in `asked`, is larger than the data or the
    run. A batch that is the recipe's own is said: a published recipe keeps it.
    """
    warnings = [text for text in (_few(config, facts), _cut_off(config, facts, asked)) if text]
    batch = config.train.batch_size
    if batch > facts.images:
        own = configure(config.run.recipe, replace(facts, batch_size=None)).train.batch_size
        if "train.batch_size" in asked and batch != own:
            raise UsageError(
                f"train.batch_size = {batch:,} is more than the {facts.images:,} training images",
                f"at most --batch-size {2 ** int(math.log2(facts.images))}, or leave it out",
            )
        warnings.append(
            f"a batch of {batch:,} images, recipe {config.run.recipe}'s, holds every one of the {facts.images:,} training "
            f"images {batch / facts.images:.2g} times: --batch-size takes a smaller one"
        )
    epochs, steps, warmup = config.train.epochs, config.train.steps, config.optim.warmup_steps
    if epochs is not None:
        steps = max(1, round(epochs * facts.images / batch))
    if not warmup or (steps is not None and warmup < steps):
        return config, warnings
    length = "a time budget" if steps is None else f"{steps:,} steps"
    if "optim.warmup_steps" in asked:
        if steps is None:  # nobody knows yet
            return config, warnings
        raise UsageError(
            f"optim.warmup_steps = {warmup:,} takes all of a run of {length}",
            f"lengthen the run, or warm up for a part of it with --set optim.warmup_steps=0 --set optim.warmup={_WARMUP}",
        )
    warnings.append(
        f"warm-up: a tenth of the run in place of recipe {config.run.recipe}'s {warmup:,} steps, as it has {length}"
    )
    return apply(config, {"optim.warmup_steps": 0, "optim.warmup": _WARMUP}), warnings


def _few(config: Config, facts: Facts) -> str:
    """That trained weights would do better than random ones, where that is sure enough to be said."""
    photographs = not is_tiny(facts) and facts.images < _FEW_PHOTOGRAPHS
    if not facts.classes:
        return ""
    each = facts.images / facts.classes
    if facts.command != "pretrain" or facts.parent is not None or not (photographs or each < _FEW_OF_A_CLASS):
        return ""
    return (
        f"{facts.images:,} {'photographs' if photographs else 'images'}, {each:.3g} a class, are few to train from random "
        f"weights; trained ones need fewer: vit finetune WEIGHTS --data {shlex.quote(config.data.source)}"
    )


def _cut_off(config: Config, facts: Facts, asked: Collection[str]) -> str:
    """That long images are seen in part, and how they are seen whole."""
    if not is_long(facts.size) or config.augment.crop != "resized":
        return ""
    free = "leave --img-size out" if "model.img_size" in asked and config.run.recipe in ("small", "finetune") else ""
    whole = format_size(shaped(replace(facts, img_size=None), config.model.img_size, config.model.multiple))
    return (
        f"images of about {format_size(facts.size)} px are cropped to {format_size(config.model.img_size)} px: most crops, and "
        f"evaluation, show the centre alone; to see all of them {free or f'take --img-size {whole} and augment.crop=pad'}"
    )


def configure(recipe: str, facts: Facts) -> Config:
    """The complete configuration of `recipe`. Raises UsageError for an unknown name or a model that does not fit."""
    if recipe not in RECIPES:
        raise UsageError(f"unknown recipe {recipe[:100]!r}", did_you_mean(recipe, RECIPES))
    trained = recipe in TUNING
    if facts.command == "pretrain" and trained and facts.parent is None:
        raise UsageError(f"recipe {recipe!r} starts from trained weights", "use vit finetune CKPT, or another recipe")
    if facts.command == "finetune" and not trained:
        raise UsageError(
            f"recipe {recipe!r} starts from random weights",
            "use vit pretrain, or --recipe finetune, paper-finetune or bit-hyperrule",
        )
    if facts.model and facts.parent is not None:
        raise UsageError("--model cannot change a trained model", "the checkpoint says what its model is")
    config = RECIPES[recipe](facts)
    config.model.check()
    return config
