"""What memory a fit will take, by what it is for, and which options make it fit; nothing is loaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ....cache.reader import CacheReader, open_cache
from ...checks import check_model, check_needs, find_policy, statistics_to_read
from ...composing import compose
from ...config.file import fit_config, read_config
from ...config.fit import FitConfig
from ...joining import join_scores
from ...models import ModelSource, weightless
from ...objective import Objective
from ...quiet import quiet_libraries
from ...scoring.chunking import free_bytes
from ...sizes import parse_size, size_text
from ...tokenizers import load_tokenizer
from ..arguments import training_arguments
from ..layout import check_layout, layout_of
from ..lora import check_lora_options, check_start
from ..sharding import Sharding
from .advice import ladder, smaller_passes
from .budget import Budget, headroom
from .counting import count_step
from .heaviest import Batches, batch_bytes


@dataclass(frozen=True)
class FitPlan:
    """Estimates of a fit. ``str()`` is for people, :meth:`to_dict` for programs."""

    model: str
    parameters: int
    """Numbers of the model's parameters."""
    device: str
    """``cuda`` or ``cpu``, where it would run."""
    memory: int | None
    """Bytes of the device; None where no limit is known."""
    asked: Budget
    """The fit with the options as asked for."""
    advice: Budget | None
    """With the cheapest options that fit: ``asked`` where that does; None where nothing does."""
    least: Budget
    """With the least that was found, where nothing fits; else what fits."""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the fit does as asked for."""
        return self.asked.fits(self.memory)

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON takes them; sizes in bytes."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "device": self.device,
            "memory": self.memory,
            "fits": self.fits,
            "asked": self.asked.to_dict(),
            "advice": None if self.advice is None else self.advice.to_dict(),
            "least": self.least.to_dict(),
            "notes": list(self.notes),
            "estimate": True,
        }

    def __str__(self) -> str:
        where = "a GPU" if self.device == "cuda" else "the CPU"
        where += "" if self.memory is None else f" with {size_text(self.memory)}"
        lines = [
            f"{self.model}: {self.parameters:,} parameters, {self.asked.trained:,} trained, on {where} "
            "(an estimate; nothing is loaded yet)",
            str(self.asked),
            *self._verdict(),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _verdict(self) -> list[str]:
        if self.memory is None:
            return []
        limit = size_text(self.memory)
        if self.fits:
            return [f"fits: {size_text(self.asked.needed)} of {limit}"]
        lines = [f"does not fit: {size_text(self.asked.needed)} of {limit}"]
        if self.advice is None:
            least = f"{size_text(self.least.needed)}, with {self.least.flags or 'the options as given'}"
            return [
                *lines,
                f"nothing tried fits; the least is {least}: take a larger GPU, several of them with --set "
                "training.fsdp=true, shorter pairs or a smaller model",
            ]
        return [*lines, f"fits with {self.advice.flags}: {size_text(self.advice.needed)}", str(self.advice)]


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
        return _Planner(config, objective, reader, source, device, memory).plan()


def _machine(gpu_memory: str | None) -> tuple[str, int | None]:
    """The device to plan for, and its bytes."""
    if gpu_memory is not None:
        return "cuda", parse_size(gpu_memory, "--gpu-memory")
    if torch.cuda.is_available():
        return "cuda", int(torch.cuda.get_device_properties(0).total_memory)
    return "cpu", free_bytes(torch.device("cpu"))


class _Planner:
    def __init__(
        self,
        config: FitConfig,
        objective: Objective | None,
        reader: CacheReader,
        source: ModelSource,
        device: str,
        memory: int | None,
    ):
        self.config, self.objective, self.reader, self.source = config, objective, reader, source
        self.device, self.memory = device, memory
        statistics = None if objective is None else statistics_to_read(objective, reader)
        self.batches = Batches.of(config, reader, statistics)
        self.sharding = Sharding.asked(config)
        self.exact = True

    def plan(self) -> FitPlan:
        asked = self.budget({})
        advice, least = (asked, asked) if asked.fits(self.memory) else self.advise(asked)
        return FitPlan(
            model=self.source.name,
            parameters=sum(p.numel() for p in weightless(self.source).parameters()),
            device=self.device,
            memory=self.memory,
            asked=asked,
            advice=advice,
            least=least,
            notes=tuple(self.notes()),
        )

    def advise(self, asked: Budget) -> tuple[Budget | None, Budget]:
        """The first set of options that fits, and the smallest that was seen."""
        least = asked
        for options in ladder(self.config, self.device):
            found = self.budget(options) if options else asked
            least = min(least, found, key=lambda budget: budget.needed)
            if found.fits(self.memory):
                return found, found
            if (smaller := self.shorter(options, found)) is not None:
                return smaller, smaller
            least = min(least, self._shortest, key=lambda budget: budget.needed)
        return None, least

    def shorter(self, options: dict[str, Any], whole: Budget) -> Budget | None:
        """With so few tokens in a forward pass that it fits: as many as can be; None where none will do."""
        tokens = whole.micro_batch["rows"] * whole.micro_batch["width"]
        sizes = smaller_passes(tokens, self.batches.longest)
        self._shortest = self.budget({**options, "batch_tokens": sizes[-1]})
        if not self._shortest.fits(self.memory):
            return None
        for size in sizes[:-1]:
            if (found := self.budget({**options, "batch_tokens": size})).fits(self.memory):
                return found
        return self._shortest

    def budget(self, options: dict[str, Any]) -> Budget:
        """What the fit takes with these options changed."""
        config = replace(self.config, **options)
        source = replace(self.source, quantization=config.quantization)
        arguments = training_arguments(config, False)
        batching, attention = self._layout(config)
        accumulation = arguments.gradient_accumulation_steps
        found = []
        for candidate, accumulates in self.batches.heaviest(batching, accumulation):
            counted = count_step(
                config,
                source,
                arguments,
                candidate,
                device=self.device,
                attention=attention,
                accumulates=accumulates,
            )
            found.append((counted.peak(self.memory), candidate, counted))
        kinds, micro, step = max(found, key=lambda one: sum(one[0].values()))
        self.exact &= step.exact
        rows = _in_order(kinds)
        if self.sharding.processes > 1 and not (self.sharding.fsdp or self.sharding.deepspeed):
            rows["exchange"] = step.gradients
        if (head := self._reference_head()) > 0:
            rows["reference head"] = head
        waiting = batch_bytes(micro) * accumulation
        main = {
            "reader": self.batches.decoded * self.batches.pair_bytes + waiting,
            **({"optimiser, paged": step.paged} if step.paged else {}),
        }
        if self.device == "cpu":
            rows |= main
            main = {}
        shape = micro["input_ids"].shape
        return Budget(
            options,
            rows,
            main,
            headroom(rows, self.device),
            {"rows": shape[0], "width": shape[1], "completion_tokens": len(micro["score_ids"])},
            step.trained,
            _remarks(config, arguments, micro, self.device),
        )

    def notes(self) -> list[str]:
        """What the figures leave out."""
        found = []
        if not self.exact:
            found.append(
                f"what the optimiser {self.config.optimizer} holds is not known; two numbers a parameter are "
                "assumed"
            )
        if self.sharding.fsdp or self.sharding.deepspeed:
            found.append(
                "figures are of a process that holds the model whole; FSDP2 and DeepSpeed's ZeRO 3 leave it "
                f"1/{self.sharding.processes} of weights, gradients and optimiser, and one layer whole"
            )
        if self.objective is None:
            found.append("without --plugin the objective is taken to need all that the cache holds")
        return found

    def _layout(self, config: FitConfig) -> tuple[Any, str]:
        model = weightless(self.source)
        if config.attention not in (None, "auto"):
            model.config._attn_implementation = config.attention
        whole = self.objective is not None and self.objective.batch_level
        batching, _ = layout_of(config, model, self.device, batch_level=whole, check=None)
        return batching, str(model.config._attn_implementation)

    def _reference_head(self) -> int:
        """Bytes of the reference's head, where the objective takes whole distributions from hidden states."""
        cached = self.reader.cached
        needed = self.objective is None or self.objective.needs & {"forward_kl", "reverse_kl"}
        if not needed or cached.hidden is None:
            return 0
        files = self.reader.manifest.files
        return sum(recorded.bytes for name, recorded in files.items() if name in cached.files)


_ROWS = ("weights", "gradients", "optimiser", "optimiser's step", "activations", "head", "micro-batch")


def _in_order(kinds: Mapping[str, int]) -> dict[str, int]:
    return {name: kinds[name] for name in (*_ROWS, *sorted(kinds.keys() - {*_ROWS})) if name in kinds}


def _remarks(config: FitConfig, arguments: Any, micro: Mapping[str, Any], device: str) -> dict[str, str]:
    rows, width = micro["input_ids"].shape
    passes = ["gradient checkpointing"] if arguments.activation_checkpointing else []
    passes += ["bfloat16 autocast"] if arguments.bf16 else []
    bits = config.quantization
    weights = [config.dtype if bits is None else f"{bits}, the rest {config.dtype}"]
    weights += [f"LoRA of rank {config.lora} in float32"] if config.lora is not None else []
    return {
        "weights": ", ".join(weights),
        "optimiser": str(getattr(arguments.optim, "value", arguments.optim)),
        "activations": ", ".join([f"{rows:,} row{'s' * (rows > 1)} of {width:,} tokens", *passes]),
        "head": f"chunks of logits of {len(micro['score_ids']):,} completion tokens",
        "exchange": "buckets of gradients between processes",
        "reader": "decoded pairs",
        "headroom": "for fragments" + (", CUDA's context and its libraries" if device == "cuda" else ""),
    }
