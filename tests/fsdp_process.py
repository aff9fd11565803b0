"""One of two processes that train a sharded model: torchrun starts it, test_fsdp.py reads what it wrote.

Every scenario trains the same tiny model whole, on all rows, and sharded, on this process's rows.
"""

import json
import sys
from types import SimpleNamespace

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from support import make_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tdpo.core.scoring.forward import enable_scoring
from tdpo.core.training.sharding import keep_scores_exact

VOCAB, MICRO_BATCHES, STEPS = 97, 2, 3


def batch(seed):
    """Four rows of twelve tokens, the last eight of each scored."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (4, 12), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "score_positions": torch.arange(48).reshape(4, 12)[:, 4:].reshape(-1),
        "score_ids": torch.randint(0, VOCAB, (32, 3), generator=generator),
    }


def batches(step, rank, size):
    """This process's micro-batches of a step; all of them for a size of one."""
    seeds = range(step * MICRO_BATCHES * 2, (step + 1) * MICRO_BATCHES * 2)
    return [batch(seed) for seed in list(seeds)[rank::size]]


def loss(model, rows):
    scores = model(**rows, score_entropy=True, score_log_collision=True)
    terms = -scores.logp.mean(), 0.1 * scores.entropy.mean(), 0.1 * scores.log_collision.mean()
    return sum(terms)


def policy(tie=False, checkpointing=False, frozen_head=False, lora=False):
    model = make_model(VOCAB, tie_word_embeddings=tie)
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        targets = ["q_proj", "v_proj", "down_proj"]
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    if frozen_head:
        model.get_output_embeddings().weight.requires_grad_(False)
    if checkpointing:
        model.activation_checkpointing_enable()
    enable_scoring(model)
    return model


def by_layer(model):
    """As torch's tutorial wraps a model."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def as_accelerate_does(model, mixed_precision=None):
    """accelerate's own wrapping, which takes the head and the last norm for a unit of their own."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    plugin.mixed_precision_policy = mixed_precision
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator = SimpleNamespace(
        state=state, torch_device_mesh=None, mixed_precision="no", is_main_process=True, device="cpu"
    )
    keep_scores_exact(SimpleNamespace(accelerator=accelerator))
    fsdp2_prepare_model(accelerator, model)


def train(model, rank=0, size=1):
    """Losses on other rows after each step; the first step's gradients; the weights, all whole."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    seen, gradients = [], {}
    for step in range(STEPS):
        model.train()
        optimizer.zero_grad()
        rows = batches(step, rank, size)
        for index, each in enumerate(rows):
            if size > 1:
                model.set_requires_gradient_sync(index == len(rows) - 1)
            (loss(model, each) / len(rows)).backward()
        if step == 0:
            gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.requires_grad}
        optimizer.step()
        model.eval()
        with torch.no_grad():
            seen.append(float(loss(model, batch(1000))))
    return seen, gradients, {n: whole(value) for n, value in model.state_dict().items()}


def whole(value):
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).clone()


def apart(ours, theirs):
    """Largest difference, over the largest entry of each tensor."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - v).abs().max() / v.abs().max().clamp(min=1e-12)) for n, v in theirs.items())


def compare(wrap, rank, **options):
    seen, gradients, weights = train(policy(**options))
    sharded = policy(**options)
    wrap(sharded)
    ours = train(sharded, rank, 2)
    return {
        "sharded": all(isinstance(weight, DTensor) for weight in sharded.parameters()),
        "losses": max(abs(a - b) for a, b in zip(ours[0], seen, strict=True)),
        "gradients": apart(ours[1], gradients),
        "weights": apart(ours[2], weights),
    }


def precision():
    """Log-probs where parameters are gathered in bfloat16 and accelerate would round what modules return."""
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    sharded, plain = policy(), policy().to(torch.bfloat16)
    as_accelerate_does(sharded, half)
    with torch.no_grad():
        ours, want = (model(**batch(0)).logp for model in (sharded, plain))
    return {"dtype": str(ours.dtype), "error": float((ours - want).abs().max())}


def main():
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    found = {}
    for wrap in (by_layer, as_accelerate_does):
        for name, options in {
            "plain": {},
            "tied": {"tie": True},
            "checkpointing": {"checkpointing": True},
            "frozen head": {"frozen_head": True},
        }.items():
            found[f"{wrap.__name__}: {name}"] = compare(wrap, rank, **options)
    found["as_accelerate_does: tied and checkpointing"] = compare(
        as_accelerate_does, rank, tie=True, checkpointing=True
    )
    found["as_accelerate_does: lora"] = compare(as_accelerate_does, rank, lora=True)
    found["precision"] = precision()
    if rank == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
