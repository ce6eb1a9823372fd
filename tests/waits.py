"""What a CPU can show of work on an accelerator: that nothing is asked of it, and that a recording of it is whole."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitcli import host

T = TypeVar("T")

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")
"""Operations whose result decides what the host does next, or how large a tensor is."""


class Refusing(TorchDispatchMode):
    """Raises where the host would wait for a device: a number is read, a size depends on data, a tensor goes to another device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        if name in READS or (name in ("aten::index", "aten::index_put", "aten::index_put_") and _is_masked(args)):
            raise AssertionError(f"{name} waits for the device")
        before = {
            t.device.type
            for t in tree_leaves((args, kwargs))
            if isinstance(t, Tensor) and (t.dim() > 0 or name == "aten::copy_")
        }
        result = function(*args, **kwargs)
        after = {t.device.type for t in tree_leaves(result) if isinstance(t, Tensor)}
        if name in ("aten::_to_copy", "aten::copy_") and len(before | after) > 1:
            raise AssertionError(f"{name} copies from {sorted(before)} to {sorted(after)}")
        return result


def _is_masked(args: Any) -> bool:
    return any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1]))


@contextlib.contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Within it the code takes the form that it has where the host may not read, on whatever device there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "can_read", lambda tensor: False)
        yield


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Tensors that claim to be on a GPU, with torch's fused optimizers, for which it has no fake kernels of its own."""
    library = torch.library.Library("aten", "IMPL")
    for name in ("_fused_adamw_.tensor_lr", "_fused_sgd_.tensor_lr", "_fused_sgd_"):
        with contextlib.suppress(RuntimeError):  # where torch has one
            library.impl(name, lambda *args, **kwargs: None, "Meta")
    try:
        with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True) as mode:
            patch.setattr(torch.nn.Module, "to", lambda module, *arguments: module)  # made there: no fake moves
            if not torch.cuda.is_available():
                _without_a_driver()
                patch.setattr(Tensor, "backward", _backward)
            yield mode
    finally:
        library._destroy()


def _without_a_driver() -> None:
    """Let a build of torch without CUDA take the device guard of meta tensors for it, which does nothing: indexing asks for one."""
    library = ctypes.CDLL(
        next(str(path) for path in (Path(torch.__file__).parent / "lib").glob("libc10.*") if path.is_file())
    )
    guards = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14
    if guards[cuda] is None:
        guards[cuda] = guards[meta]


def _backward(loss: Tensor, *arguments: Any, **named: Any) -> None:
    """Gives every parameter that the loss depends on a gradient: autograd's engine asks for the driver. The operations of the backward
    pass are those that the same step has on the CPU.
    """
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaf.grad = torch.empty_like(leaf)
        waiting += [following for following, _ in node.next_functions]


class Tape(TorchDispatchMode):
    """Records the operations of what runs within it, and does them again on the same memory: what a CUDA graph does, on any device.

    What the host computed meanwhile is not done again. So an update that depends on a number of the host's gives, replayed,
    what it gave when it was recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, result in self.done:
                again = function(*args, **kwargs)
                aliased = any(r.alias_info is not None for r in function._schema.returns)
                if not aliased:  # an operation in place, and a view, is there already
                    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor):
                            old.copy_(new)


def on_tape(body: Callable[[], T]) -> tuple[T, Callable[[], None]]:
    """As execution.recorded: `body` runs once to be recorded, so that what it changes is put back by whoever records."""
    with Tape() as tape:
        result = body()
    return result, tape.replay
