"""Flags that depend on the machine, precision and sharding: refused where it cannot serve them."""

from engine.devices import device_type, has_bf16_units, has_fp16_units, has_tf32
from engine.errors import InputError
from engine.extension import load_extensions, technique_of
from engine.parallel import world_size_of_torchrun

WHOLE_WEIGHTS = {  # flags that do not go with --shard, and why
    "checkpoint": "it trains nothing",
    "compile": "no compiled shards",
    "fp16": "each process would see overflows of its own",
}


def check_precision(args) -> None:
    """Refuse a precision that the machine is not made for."""
    kind = device_type(args.use_gpu)
    if args.bf16 and args.fp16:
        raise InputError("--bf16 and --fp16 are two precisions: give one of them")
    if args.bf16 and not has_bf16_units(kind):
        if args.use_gpu:
            raise InputError("--bf16: this GPU has no bfloat16 units: give --fp16")
        raise InputError("--bf16: CPUs without bf16 units are 30 times slower: add --use_gpu")
    if args.fp16 and not has_fp16_units(kind):
        raise InputError("--fp16: CPUs without fp16 units are 70 times slower: add --use_gpu")
    if args.tf32 and not args.use_gpu:
        raise InputError("--tf32: CPUs have no such format: add --use_gpu, or give --bf16")
    if args.tf32 and not has_tf32(kind):
        raise InputError("--tf32: this GPU has no such format: leave it out, or give --fp16")
    if getattr(args, "shard", False):
        check_shard(args)


def precision_name(args) -> str:
    """In words, what training computes in."""
    names = {"bf16": "bfloat16 autocast", "fp16": "float16 autocast with a loss scale"}
    names |= {"tf32": "float32 with TF32 products"}
    return " and ".join(name for flag, name in names.items() if getattr(args, flag)) or "float32"


def check_shard(args) -> None:
    """Refuse what does not go with sharded weights."""
    if world_size_of_torchrun() == 1:
        raise InputError(
            "--shard: one process, there is nobody to share with: start it by "
            "torchrun --nproc_per_node=2 …, or leave --shard out"
        )
    for name, why in WHOLE_WEIGHTS.items():
        if getattr(args, name):
            raise InputError(f"--shard: not with --{name} ({why}): leave one of them out")
    whole = [technique_of(e) for e in load_extensions(args.extension) if not e.shardable]
    if whole:
        raise InputError(f"--shard: {', '.join(whole)}: needs whole weights: leave one of them out")
