"""What memory a fit will take, by what it is for, and which options make it fit; nothing is loaded."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ....cache.reader import open_cache
from ...checks import check_model, check_needs, find_policy
from ...composing import compose
from ...config.file import fit_config, read_config
from ...config.fit import FitConfig
from ...joining import join_scores
from ...quiet import quiet_libraries
from ...scoring.chunking import free_bytes
from ...sizes import parse_size
from ...tokenizers import load_tokenizer
from ..layout import check_layout
from ..lora import check_lora_options, check_start
from .planner import Planner
from .result import FitPlan


def plan_fit(
    plugin: str | Sequence[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    *,
    gpu_memory: str | None = None,
    config: str | os.PathLike[str] | None = None,
    **options: Any,
) -> FitPlan:
    """Tell what memory a fit takes, and which options make it fit; what ``tdpo plan`` does.

    Takes what :func:`tdpo.fit` takes. Neither the model's weights are opened nor anything written.

    Args:
        plugin: the objective; without one it is taken to need whatever the cache holds.
        cache: the cache's folder.
        gpu_memory: size of the GPU to plan for, such as ``"24GB"``; this machine's, or its main memory
            where it has none, when not given.
        config: a ``tdpo.yaml``.
        options: the fit's.

    Raises:
        TdpoError: what was given cannot be used.
    """
    given = dict(options)
    if plugin is not None:
        given["plugin"] = plugin
    if cache is not None:
        given["cache"] = os.fspath(cache)
    return run_plan(planned_config(given, config), gpu_memory=gpu_memory)


def planned_config(given: Mapping[str, Any], config: str | os.PathLike[str] | None = None) -> FitConfig:
    """The fit's options, of which none must be given.

    Raises:
        ConfigError: an unknown or unusable option.
    """
    named = "plugin" in given or "plugin" in read_config(config)["fit"]
    return fit_config(given if named else {**given, "plugin": []}, config)


def run_plan(config: FitConfig, *, gpu_memory: str | None = None) -> FitPlan:
    """Plan the fit that ``config`` describes. Raises as :func:`plan_fit`."""
    device, memory = _machine(gpu_memory)
    check_lora_options(config)
    reader: Any = open_cache(config.cache)
    objective = compose(config.plugin, config.weighting, config.set) if config.plugin else None
    if objective is not None:
        reader, _ = join_scores(config, objective, reader, {})
        check_needs(config, objective, reader)
    source = find_policy(config, reader, weights=False)
    check_start(config, source)
    check_model(source, load_tokenizer(source, option="--model"), reader, option="--model")
    check_layout(config, source.config)
    with quiet_libraries():
        return Planner(config, objective, reader, source, device, memory).plan()


def _machine(gpu_memory: str | None) -> tuple[str, int | None]:
    """The device to plan for, and its bytes."""
    if gpu_memory is not None:
        return "cuda", parse_size(gpu_memory, "--gpu-memory")
    if torch.cuda.is_available():
        return "cuda", int(torch.cuda.get_device_properties(0).total_memory)
    return "cpu", free_bytes(torch.device("cpu"))
