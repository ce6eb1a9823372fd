"""How each family is written for timm and for transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitcli.errors import CheckpointError
from vitcli.weights import formats, formats_residual, formats_timm
from vitcli.weights.describe import Description

Weights = Callable[[Description, Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """`check` raises CheckpointError for a model that the tool has not."""

    check: Callable[[Description], None]
    config: Callable[[Description], dict[str, Any]]
    weights: Weights


THEIRS: dict[tuple[str, str], Format] = {
    ("vit", "timm"): Format(
        check=formats_timm.check_timm, config=formats_timm.timm_config, weights=formats_timm.timm_weights
    ),
    ("vit", "transformers"): Format(
        check=formats.check_transformers, config=formats.transformers_config, weights=formats.transformers_weights
    ),
    ("hybrid", "timm"): Format(
        check=formats_residual.check_timm_hybrid,
        config=formats_residual.timm_hybrid_config,
        weights=formats_residual.timm_hybrid_weights,
    ),
    ("bit", "timm"): Format(
        check=formats_residual.check_timm_bit,
        config=formats_residual.timm_bit_config,
        weights=formats_residual.timm_bit_weights,
    ),
    ("bit", "transformers"): Format(
        check=formats_residual.check_transformers_bit,
        config=formats_residual.transformers_bit_config,
        weights=formats_residual.transformers_bit_weights,
    ),
}
"""By family and tool."""
_GONE = {("hybrid", "transformers"): "transformers has no hybrids since its version 5"}


def format_of(description: Description, tool: str) -> Format:
    """Raises CheckpointError for a family that the tool has not."""
    family = description.model.family
    found = THEIRS.get((family, tool))
    if found is None:
        others = [name for has, name in THEIRS if has == family] + ["onnx"]
        raise CheckpointError(
            _GONE.get((family, tool), f"{tool} has no models of the family {family}"),
            f"export it with {' or '.join(f'--format {name}' for name in others)}",
        )
    return found
