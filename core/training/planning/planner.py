"""Budgets of a fit under this set of options and that, until one fits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ....cache.reader import CacheReader
from ...checks import statistics_to_read
from ...config.fit import FitConfig
from ...models import ModelSource, weightless
from ...objective import Objective
from ..arguments import training_arguments
from ..layout import layout_of
from ..sharding import Sharding
from .advice import ladder, smaller_passes
from .budget import Budget, headroom
from .counting import count_step
from .heaviest import Batches, batch_bytes
from .result import FitPlan


class Planner:
    """Plans a fit, and what would make it fit.

    Args:
        config: the fit's options.
        objective: the loss; None for what any takes.
        reader: the cache.
        source: the policy's start.
        device: ``cuda`` or ``cpu``.
        memory: bytes of it; None where no limit is known.
    """

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
        """The budget as asked for and, where that does not fit, with the cheapest options that do."""
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
