"""One of two processes that train from a cache, for test_fit_processes.py: torchrun starts it.

``fit_process.py CACHE OUTPUT`` notes which rows this process reads, and what is said where accelerate does
not shard as asked; it trains the same policy whole and sharded.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

import tdpo
from tdpo.core.errors import ConfigError
from tdpo.core.models import find_reference, load_model
from tdpo.core.training.data import CachedPairs
from tdpo.core.training.sharding import Sharding, ShardingCheck, keep_scores_exact, save_whole
from tdpo.core.training.trainer import PreferenceTrainer


class Noting(CachedPairs):
    """Keeps the row numbers that its reader is asked for."""

    def __init__(self, cache):
        super().__init__(tdpo.open_cache(cache))
        self.rows, read = [], self.reader.read

        def noting(indices, **options):
            self.rows += list(indices)
            return read(indices, **options)

        self.reader.read = noting


def policy(source, lora):
    model = load_model(source, dtype="float32")
    if not lora:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"]))


def trainer(cache, output, *callbacks, lora=False, **options):
    source = find_reference(tdpo.open_cache(cache).manifest, cache, option="--model")
    arguments = TrainingArguments(
        output_dir=str(output), use_cpu=True, per_device_train_batch_size=4, per_device_eval_batch_size=4,
        num_train_epochs=1, report_to="none", save_strategy="no", disable_tqdm=True, optim="sgd",
        ddp_find_unused_parameters=False, remove_unused_columns=False, label_names=[], **options,
    )  # fmt: skip
    return PreferenceTrainer(
        policy(source, lora),
        tdpo.objective("dpo"),
        Noting(cache),
        Noting(cache),
        args=arguments,
        callbacks=list(callbacks),
    )


def shard_on_cpu(trainer):
    """accelerate shards over GPUs only; told that it runs FSDP, it does so on CPUs as well."""
    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    trainer.is_fsdp_enabled = True
    keep_scores_exact(trainer)


def refused(cache, output):
    """What a run is told that asks for FSDP and gets data parallelism, and the steps it took."""
    asking = trainer(cache, output, ShardingCheck(Sharding(2, fsdp=True)), fsdp=True)
    try:
        asking.train()
    except ConfigError as error:
        return str(error), asking.state.global_step
    return None, asking.state.global_step


def train_adapter(folder, cache, output, prepare, **options):
    """Train a LoRA, and save it in a folder."""
    beside = trainer(cache, output, lora=True, **options)
    prepare(beside)
    beside.train()
    save_whole(beside, f"{output}/{folder}")


def main(cache, output):
    torch.set_num_threads(1)
    options = {"learning_rate": 0.1, "logging_steps": 1, "gradient_accumulation_steps": 2}
    plain = trainer(cache, output, **options)
    plain.train()
    plain.evaluate()
    plain.save_model(f"{output}/plain")
    found = {"trained": plain.train_dataset.rows, "evaluated": plain.eval_dataset.rows}
    found["plain"] = plain.state.log_history
    train_adapter("plain-lora", cache, output, lambda trainer: None, **options)
    found["said"], found["steps"] = refused(cache, output)
    sharded = trainer(cache, output, ShardingCheck(Sharding(2, fsdp=True)), fsdp=True, **options)
    shard_on_cpu(sharded)
    sharded.train()
    sharded.evaluate()
    sharded.accelerator.state.fsdp_plugin.set_state_dict_type("SHARDED_STATE_DICT")
    save_whole(sharded, f"{output}/sharded")
    found["sharded"] = sharded.state.log_history
    sharding = {"fsdp": True, "activation_checkpointing": True}
    train_adapter("sharded-lora", cache, output, shard_on_cpu, **sharding, **options)
    found["parameters"] = all(isinstance(weight, DTensor) for weight in sharded.model.parameters())
    Path(output, f"{plain.args.process_index}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
