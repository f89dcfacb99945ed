"""Run a model for evaluation, and leave it as it was."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["as_it_was"]


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Return a context in which a model can be run for evaluation, and that leaves everything as it was."""
    trained = [(one, one.requires_grad) for one in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    # An embedding with a limit scales its rows when they are looked up.
    scaled = [
        (module.weight, module.weight.detach().clone())
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
    ]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    precision = torch.get_float32_matmul_precision()
    devices = sorted({one.device.index for one in model.parameters() if one.device.type == "cuda"})
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled; it takes seconds to import
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, _ in modes:
                module.training = False  # not eval(): a class of its own may do more there
            torch.backends.mha.set_fastpath_enabled(False)  # it calls no layer
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, mode in modes:
                module.training = mode
            for parameter, requires_grad in trained:
                if parameter.requires_grad != requires_grad:  # one without a shape cannot be told so
                    parameter.requires_grad_(requires_grad)
            for module, name, buffer, saved in buffers:
                if buffer is not None and saved is not None and not _same(buffer, saved):
                    buffer.copy_(saved)
                module._buffers[name] = buffer
            for weight, saved_weight in scaled:
                weight.data.copy_(saved_weight)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))
