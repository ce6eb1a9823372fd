"""Several processes with torch's engines: DistributedDataParallel, where each has all numbers of a run; FSDP2 (`fully_shard`), where each has
a part, and torch.distributed.checkpoint for what is saved of parts.

In parts, a block's weights are brought together while it is computed, so that weights, gradients, moments and averages of a process are its part
of them. How many processes there are changes nothing but rounding.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitcli import world
from vitcli.config import Config
from vitcli.data.batch import Batch
from vitcli.errors import CheckpointError, ResourceError, UsageError
from vitcli.machine import Machine
from vitcli.model.classifier import Classifier
from vitcli.model.held import Held
from vitcli.train.objectives.base import Noise, Objective

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

Tensors = dict[str, Tensor]

METADATA = ".metadata"
"""The file of a saved step that says where the parts of its tensors lie; the others end in `.distcp`."""
_OPTIMIZERS = ("adamw", "sgd")
"""Those that compute each number of a weight by itself, so that a part of it is enough."""


@dataclass(frozen=True)
class Gather:
    """Whole tensors are wanted by the first process: of what the run leaves (Trainer.weights), else of the model as it is trained."""

    averaged: bool


@dataclass(frozen=True)
class Keep:
    """The step is saved: each process writes its parts into this folder."""

    folder: Path


def is_asked(config: Config) -> bool:
    """Whether the processes of this run keep parts."""
    return config.scale.shard and world.world().is_shared


def check(config: Config, model: Classifier) -> None:
    """Raises UsageError where a run cannot be kept in parts."""
    if not hasattr(model, "blocks"):
        raise UsageError("scale.shard: only Vision Transformers are sharded, block by block", "leave it out")
    if config.optim.name not in _OPTIMIZERS:
        raise UsageError(
            f"scale.shard: optim.name = {config.optim.name} needs whole matrices in one process",
            "add --set optim.name=adamw, or leave scale.shard out",
        )


class Pair(nn.Module):
    """A model and its objective as one module, whose forward pass is what torch's engines look at."""

    def __init__(self, model: Classifier, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss and the metrics, apart, since FSDP2 looks for tensors in tuples and dictionaries."""
        found = self.objective(self.model, batch, noise)
        return found.loss, found.metrics


def can_replicate(model: Classifier) -> bool:
    """Whether gradients reach the weights in one pass, which is what DistributedDataParallel expects."""
    return not any(isinstance(module, Held) for module in model.modules())


def replicated(model: Classifier, objective: Objective) -> tuple[DistributedDataParallel, list[nn.Parameter]]:
    """The pair after an update, whose gradients are brought together from here on while others are still computed; and the parameters that
    had none in that update, of which the engine would wait for one.
    """
    from torch.nn.parallel import DistributedDataParallel

    pair = Pair(model, objective)
    unused = {name: p for name, p in pair.named_parameters() if p.requires_grad and p.grad is None}
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of axes of length one, where they mean nothing
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pair, list(unused))
    with _quiet():
        return DistributedDataParallel(pair, broadcast_buffers=False), list(unused.values())


class Whole(Pair):
    """In parts (FSDP2): copies of the model and the objective given."""

    def __init__(self, model: Classifier, objective: Objective, machine: Machine) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(copy.deepcopy(model), copy.deepcopy(objective))
        mesh = init_device_mesh(machine.device.type, (world.world().size,))
        # torch's LayerNorm takes weights of another type than its input on a GPU alone, so that a CPU rounds for products, not before
        halved = machine.bf16 and machine.device.type == "cuda"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if halved else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for block in self.model.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        # threads of saves speak to each other apart from what the updates say
        self.saves: Any = torch.distributed.new_group(backend="gloo")


# --- tensors in parts --------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, or all of one that is whole."""
    part: Tensor = tensor.to_local() if is_parted(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """All of it, brought together by all processes."""
    found: Tensor = tensor.full_tensor() if is_parted(tensor) else tensor  # type: ignore[attr-defined]
    return found


def parted_as(like: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, which every process has, in parts as `like` is, if it has its shape."""
    from torch.distributed.tensor import distribute_tensor

    if not is_parted(like) or tensor.shape != like.shape:
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def part_of(like: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a tensor, as part of one that is parted as `like` is."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    return DTensor.from_local(
        tensor, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def is_parted(tensor: Tensor) -> bool:
    """Whether a process has a part of it alone; FSDP2 parts the first axis."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def gathered(tensors: Mapping[str, Tensor]) -> Tensors:
    """Whole tensors in the first process, which all bring together; nothing in the others."""
    first, found = world.world().is_first, {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if first:
            found[name] = full.cpu() if is_parted(tensor) else full
    return found


@contextmanager
def on(device: torch.device, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it they lie on the device, afterwards in the host's memory."""
    modules = list(modules)
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        for module in modules:
            module.cpu()


# --- saved parts -------------------------------------------------------------------------------------------


def save(folder: Path, groups: Mapping[str, Tensors], saves: Any) -> Callable[[], None]:
    """Begin to write this process's parts into `folder`, of tensors that may change as soon as this returns. What is returned waits until
    all processes have written theirs.
    """
    import torch.distributed.checkpoint as checkpoint

    flat = {f"{group}/{name}": t.detach() for group, tensors in groups.items() for name, t in tensors.items()}
    with _quiet():
        future: Future[Any] = checkpoint.async_save(  # type: ignore[assignment]
            flat, checkpoint_id=str(folder), process_group=saves
        )

    def wait() -> None:
        try:
            future.result()
        except BaseException as error:  # torch's own is no Exception
            raise ResourceError(
                f"cannot write the parts of a step to {folder}: {str(error)[-200:]}",
                "is there room, and are all processes there? the same command goes on from the last saved step",
            ) from None

    return wait


def load(folder: Path, like: Callable[[str, str], Tensor | None]) -> dict[str, Tensors]:
    """The tensors of a saved step by group, in parts as `like` (group, name) is; where that is None, whole. Raises CheckpointError."""
    import torch.distributed.checkpoint as checkpoint

    try:
        described = checkpoint.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
        flat: dict[str, Any] = {}
        for key, about in described.items():
            group, _, name = key.partition("/")
            model = like(group, name)
            size, dtype = about.size, about.properties.dtype  # type: ignore[union-attr]
            fits = model is not None and model.shape == size
            flat[key] = torch.empty_like(model) if fits and model is not None else torch.empty(size, dtype=dtype)
        with _quiet():
            checkpoint.load(flat, checkpoint_id=str(folder), no_dist=not world.world().is_shared)
    except Exception as error:
        raise CheckpointError(
            f"cannot read the saved parts in {folder}: {str(error)[:200]}", "start anew with --resume never"
        ) from None
    groups: dict[str, Tensors] = {}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of one process that loads, or of folders that are there already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
