"""Sharded training: of n workers, each holds 1/n of the weights, their gradients and their moments.

Rajbhandari et al. 2020 ("ZeRO"), stage 3, by torch's FSDP2 (Zhao et al. 2023). A layer's weights
are gathered from all workers when its turn comes, and freed after it; its gradient is averaged
over the workers, and each keeps its share. The model knows nothing of it: as with
DistributedDataParallel, all workers must run the same forward passes.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from engine.forms import accelerate
from engine.parallel import Worker
from models.gpt2 import GPT2Model
from modules.gpt2_layer import GPT2Layer


def distributed(model: nn.Module, worker: Worker, *, shard: bool) -> nn.Module:
    """The model as this worker trains it: alone, as one of n copies, or with its share of it.

    What has no layer of GPT-2 is small, and copied.
    """
    if worker.world_size == 1:
        return model
    if shard and _layers(model):
        return sharded(model, worker)
    return DistributedDataParallel(model)


def sharded(model: nn.Module, worker: Worker) -> nn.Module:
    """Shard each layer, then all the rest as one part, in place; the weights go to the device.

    Each call of a layer must be a call of the module: `LastTokenGPT2` has others.
    """
    from torch.distributed.device_mesh import init_device_mesh  # a second of imports
    from torch.distributed.fsdp import fully_shard

    accelerate(model, extended=True)
    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _layers(model: nn.Module) -> list[GPT2Layer]:
    return [module for module in model.modules() if isinstance(module, GPT2Layer)]


def is_part(module: nn.Module) -> bool:
    """Whether `sharded` made the module a part: its weights are gathered together."""
    return hasattr(module, "reshard")


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The outermost first; [] of a model that is not sharded."""
    return [module for module in model.modules() if is_part(module)]


def is_share(tensor) -> bool:
    """Whether it is one of torch's DTensors, of which each worker has a share."""
    return hasattr(tensor, "full_tensor")


@contextlib.contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """In the block each worker holds all weights and needs no other one to use them.

    All workers enter it together. A model that is not sharded has its weights anyway.
    """
    parts = parts_of(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:  # the outermost one stays gathered until the backward pass, by default
            part.set_reshard_after_forward(part is not parts[0], recurse=False)
            part.reshard()


def gathered(value):
    """A tree with whole CPU tensors in the place of sharded ones; None for them but on worker 0.

    All workers call it together. One tensor after the other is whole on a GPU.
    """
    if is_share(value):
        whole = value.full_tensor()
        return whole.cpu() if dist.get_rank() == 0 else None
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    return [gathered(item) for item in value] if isinstance(value, list) else value


def whole_gpt(gpt: GPT2Model) -> GPT2Model | None:
    """A GPT-2 with its whole weights: itself, or worker 0's copy on the CPU of a sharded one."""
    if not parts_of(gpt):
        return gpt
    weights = gathered(gpt.state_dict())
    if dist.get_rank() > 0:
        return None
    with torch.device("meta"):  # shapes only: the weights are taken as they are
        whole = GPT2Model(gpt.config)
    whole.load_state_dict({name: weights[name] for name in whole.state_dict()}, assign=True)
    return whole


def sharded_like(like: torch.Tensor, whole):
    """A worker's share of a whole tensor, cut as `like` is, of the same shape; else `whole`."""
    if not is_share(like) or getattr(whole, "shape", None) != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def sharded_moments(stored: dict, optimizer: torch.optim.Optimizer) -> dict:
    """An optimizer's state_dict, its whole tensors cut as the optimizer's parameters are."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    names = [name for group in stored["param_groups"] for name in group["params"]]
    by_name = dict(zip(names, params, strict=True))
    state = {
        name: {key: sharded_like(by_name[name], value) for key, value in values.items()}
        for name, values in stored["state"].items()
    }
    return stored | {"state": state}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's share of a tensor, or all of one that is not sharded."""
    return tensor.to_local() if is_share(tensor) else tensor
