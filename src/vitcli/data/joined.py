"""Images of two splits as one sequence: those of the second count on where the first end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitcli.data.cache import Images, Pixels
from vitcli.data.decode import View
from vitcli.data.split import Rows


@dataclass(eq=False)
class Joined:
    """What a loader reads of `Images`, of two of them."""

    first: Images
    second: Images

    @property
    def view(self) -> View:
        return self.first.view

    @property
    def is_cached(self) -> bool:
        return self.first.is_cached and self.second.is_cached

    @property
    def damage(self) -> str:
        return self.first.damage or self.second.damage

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def ids(self, positions: Rows) -> Rows:
        """Rows of the two tables, those of the second after all of the first."""
        own = positions < len(self.first.split)
        return np.where(
            own,
            self.first.split.rows[np.where(own, positions, 0)],
            len(self.first.split.table) + self.second.split.rows[np.where(own, 0, positions - len(self.first.split))],
        )

    def read(self, positions: Rows) -> tuple[Pixels, NDArray[np.int32]]:
        """As Images.read. Raises DataError."""
        own = positions < len(self.first.split)
        pixels = np.empty((len(positions), *self.view.shape), np.uint8)
        sizes = np.empty((len(positions), 2), np.int32)
        for images, here, start in ((self.first, own, 0), (self.second, ~own, len(self.first.split))):
            if here.any():
                pixels[here], sizes[here] = images.read(positions[here] - start)
        return pixels, sizes


@dataclass(frozen=True, eq=False)
class Drawn:
    """What an epoch draws: `positions` of images, and which copy of the image each is, so that copies differ. Images from
    position `start` on have the distributions `soft` in place of a label.
    """

    positions: Rows
    copies: Rows | None = None
    start: int = 0
    soft: Float[np.ndarray, "images classes"] | None = field(default=None, repr=False)
