"""What is asked for of FSDP2 and DeepSpeed is what runs, or the run is refused.

accelerate trains with plain data parallelism, without a word, where it cannot shard as it was asked to.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..config.fit import FitConfig
from ..errors import ConfigError

_EVEN = "the processes share out the rows of a batch themselves"
# Fields of training.accelerator_config that change which process reads which rows, and what they must be.
_READING = {"dispatch_batches": (None, False), "split_batches": (False,), "even_batches": (True,)}
# What else accelerate can split a model by, as its launcher says so.
_OTHERS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG_TP_SIZE": "tensor parallelism",
    "PARALLELISM_CONFIG_CP_SIZE": "context parallelism",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence parallelism",
}


@dataclass(frozen=True)
class Sharding:
    """How the policy is asked to be spread over the processes; whole in each of them by default."""

    processes: int = 1
    fsdp: bool = False
    deepspeed: bool = False

    @classmethod
    def asked(cls, config: FitConfig) -> "Sharding":
        """What the options and the launcher's environment ask for.

        Raises:
            ConfigError: it cannot run here, or not with the scored forward pass.
        """
        for name, what in _OTHERS.items():
            if os.environ.get(name, "1").lower() not in ("1", "", "false"):
                raise ConfigError(f"{what} is asked for ({name}), which tdpo does not train with; use FSDP2")
        _check_reading(config.training.get("accelerator_config"))
        fsdp = bool(as_flag(config.training.get("fsdp"))) or _says_yes("ACCELERATE_USE_FSDP")
        if fsdp:
            _check_fsdp(config)
        elif config.training.get("fsdp_config"):
            raise ConfigError("training.fsdp_config does nothing without training.fsdp: give that too")
        given = config.training.get("deepspeed")
        deepspeed = bool(given) or _says_yes("ACCELERATE_USE_DEEPSPEED")
        if deepspeed:
            _check_deepspeed(given)
        return cls(config.num_processes, fsdp, deepspeed)


def takes_gpus(config: FitConfig) -> bool:
    """Whether each process of the fit is to take a GPU of its own."""
    use_cpu = as_flag(config.training.get("use_cpu")) or _says_yes("ACCELERATE_USE_CPU")
    return torch.accelerator.is_available() and not use_cpu


def as_flag(value: Any) -> Any:
    """A yes or no that ``--set`` gives as text; as ``training.fsdp``, text means something else."""
    words = {"true": True, "false": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def _check_reading(given: Any) -> None:
    values = _document(given, "training.accelerator_config")
    for name, allowed in _READING.items():
        if values.get(name, allowed[0]) not in allowed:
            raise ConfigError(f"training.accelerator_config: {name}={values[name]!r}: {_EVEN}; leave it out")


def _check_fsdp(config: FitConfig) -> None:
    if not takes_gpus(config):
        raise ConfigError(
            "FSDP is asked for, and there is no GPU to shard over: accelerate would train with plain data "
            "parallelism on the CPU, without a word; leave FSDP out (training.fsdp, or the launcher's "
            "configuration)"
        )
    if config.num_processes == 1:
        raise ConfigError(
            "FSDP is asked for, and there is one process: give --num-processes, or start with torchrun or "
            "accelerate launch"
        )
    if config.merge:
        raise ConfigError(
            "--merge with FSDP: no process holds the whole model to merge the LoRA into; leave --merge out"
        )
    values = _document(config.training.get("fsdp_config"), "training.fsdp_config")
    options = {name.removeprefix("fsdp_"): value for name, value in values.items()}
    version = options.get("version", 2)
    efficient = options.get("cpu_ram_efficient_loading", False)
    if not as_flag(config.training.get("fsdp")):
        version = os.environ.get("FSDP_VERSION", "1")
        efficient = os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    again = as_flag(options.get("activation_checkpointing", False)) or _says_yes(
        "FSDP_ACTIVATION_CHECKPOINTING"
    )
    if config.gradient_checkpointing and again:
        raise ConfigError(
            "--gradient-checkpointing and FSDP's own activation_checkpointing: give one of them"
        )
    if config.lora is not None and again:
        raise ConfigError(
            "--lora and FSDP's own activation_checkpointing, under which peft does not find all of the LoRA "
            "to save it: use --gradient-checkpointing"
        )
    if str(version) != "2":
        raise ConfigError(f"FSDP version {version} is asked for; tdpo trains with version 2: fsdp_version: 2")
    if str(efficient).lower() in ("1", "true", "yes"):
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading is asked for, by which only the first process has weights to "
            "check before they are sharded; set it to false"
        )


def _check_deepspeed(given: Any) -> None:
    if find_spec("deepspeed") is None:
        raise ConfigError(
            "DeepSpeed is asked for and not installed: pip install deepspeed, or use FSDP2 (training.fsdp)"
        )
    given = given or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    stage = _document(given, "training.deepspeed").get("zero_optimization", {}).get("stage", 0)
    if not given:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if str(stage) not in ("0", "1", "2"):
        raise ConfigError(
            f"DeepSpeed ZeRO stage {stage} is asked for: it keeps the output head in parts, which the scored "
            "forward pass cannot read; use stage 2, or FSDP2 (training.fsdp)"
        )


def _document(given: Any, option: str) -> Mapping[str, Any]:
    """A JSON object that is given as such or as the path of a file."""
    if given is None:
        return {}
    if isinstance(given, str | os.PathLike):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not JSON"
            raise ConfigError(f"{option} {given}: {reason}; give a JSON file") from error
    if not isinstance(given, Mapping):
        raise ConfigError(f"{option}: expected names with values, not {given!r}")
    return given


def keep_scores_exact(trainer: Any) -> None:
    """Let the policy's log-probs leave a sharded model in float32.

    With bf16, accelerate has FSDP2 round whatever a module returns to bfloat16: log-probs of 3 digits.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    policy: Any = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and getattr(policy, "output_dtype", None) is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def save_whole(trainer: Any, folder: str) -> None:
    """Save the policy as one ordinary model folder, however it is spread."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None:
        plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(folder)


class ShardingCheck(TrainerCallback):
    """Before the first step, compares how the policy is spread with what was asked for."""

    def __init__(self, asked: Sharding):
        self.asked = asked

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The model is prepared.

        Raises:
            ConfigError: it runs otherwise.
        """
        from torch.distributed.tensor import DTensor

        asked, runs = self.asked, args.world_size
        if asked.processes != runs:
            raise ConfigError(
                f"processes that this one knows of: {asked.processes}, that run: {runs}; start them with "
                "--num-processes, torchrun or accelerate launch"
            )
        if asked.fsdp and not any(isinstance(weight, DTensor) for weight in model.parameters()):
            raise ConfigError(
                "FSDP is asked for, and the policy is not sharded: accelerate runs "
                f"{args.distributed_state.distributed_type.value} instead; leave FSDP out, or start with a "
                "configuration that accelerate shards by"
            )
        if asked.deepspeed and args.distributed_state.distributed_type.value != "DEEPSPEED":
            raise ConfigError("DeepSpeed is asked for, and accelerate does not run it; leave it out")
