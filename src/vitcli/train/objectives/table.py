"""The objectives by their names. One more is a file beside this one and a line here."""

from __future__ import annotations

from vitcli.config_values import shown
from vitcli.errors import UsageError, did_you_mean
from vitcli.train.objectives.base import Objective
from vitcli.train.objectives.classify import Classify
from vitcli.train.objectives.distill import Distill
from vitcli.train.objectives.mae import MAE
from vitcli.train.objectives.masked_patch import MaskedPatch
from vitcli.train.objectives.visreg import Visreg

OBJECTIVES: dict[str, type[Objective]] = {
    "classify": Classify,
    "masked-patch": MaskedPatch,
    "mae": MAE,
    "visreg": Visreg,
    "distill": Distill,
}


def objective_named(name: str) -> type[Objective]:
    """Raises UsageError for a name that there is not."""
    if name not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise UsageError(f"train.objective = {shown(name)}: not one of {known}", did_you_mean(name, OBJECTIVES))
    return OBJECTIVES[name]
