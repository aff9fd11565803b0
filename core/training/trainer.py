"""transformers.Trainer with the preference loss, our data order and our log."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from ..objective import Objective, PairLoss
from ..scoring.completions import completions
from ..scoring.forward import enable_scoring
from .agreement import check_agreement
from .data import CachedPairs, EpochSampler, collate
from .divergences import ExactDivergences
from .metrics import Means, pair_metrics, peak_memory_gb


class PreferenceTrainer(Trainer):
    """Trains a causal language model on cached pairs; only the policy is in memory.

    Args:
        model: the policy.
        objective: the loss.
        train_dataset: pairs with the reference's statistics.
        eval_dataset: held-out pairs, or None.
        estimator: of the forward KL.
        check_start: whether the policy must start at the cached reference.
        kwargs: passed on to Trainer.
    """

    # compute_loss divides by the pairs of the whole optimiser step itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        objective: Objective,
        train_dataset: CachedPairs,
        eval_dataset: CachedPairs | None = None,
        *,
        estimator: str = "fitted",
        check_start: bool = True,
        **kwargs: Any,
    ):
        # Before Trainer sees the model: autocast and the parallel wrappers must end up around our forward.
        self._exact = ExactDivergences.of(train_dataset.reader, objective.needs, kwargs["args"].device)
        enable_scoring(model, self._exact.head)
        self.objective: Objective = objective
        self.estimator, self.check_start = estimator, check_start
        self.reader = train_dataset.reader
        self._means = {"train": Means(), "eval": Means()}
        self._clock = _StepClock()
        self._tokens = 0
        super().__init__(
            model=model,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=collate,
            **kwargs,
        )
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self._sampler = EpochSampler(self.reader, seed)
        self.add_callback(_EpochOrder(self._sampler))
        self.add_callback(self._clock)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self._sampler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The micro-batches of one optimiser step and the pairs in them, over all processes."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        pairs = torch.tensor(sum(len(batch["lengths"]) // 2 for batch in batches), device=self.args.device)
        return batches, self.accelerator.gather(pairs).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of the pairs' losses over the pairs of the optimiser step: accumulation changes nothing."""
        loss = self._pair_loss(model, inputs, "train" if model.training else "eval")
        if num_items_in_batch is None:
            value = loss.loss.mean()
        else:
            # Data-parallel wrappers average gradients over processes; ours is a sum.
            value = loss.loss.sum() * self.accelerator.num_processes / num_items_in_batch
        return (value, loss) if return_outputs else value

    def _pair_loss(self, model: Any, inputs: dict[str, Tensor], mode: str) -> PairLoss:
        statistics = self.reader.identity["statistics"]
        scores = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            score_positions=inputs["score_positions"],
            **self._exact.arguments(inputs),
            score_entropy=True,
            score_log_collision="log_collision" in self.objective.needs,
        )
        chosen, rejected = completions(
            scores,
            inputs,
            head=statistics["head"],
            vocab_size=statistics["vocab_size"],
            estimator=self.estimator,
            kl_gradient="forward_kl" in self.objective.needs,
        )
        if self.check_start:
            check_agreement(
                chosen, rejected, self.reader.identity["reference"]["dtype"], self._compute_dtype()
            )
            self.check_start = False
        loss = self.objective(chosen, rejected)
        self._means[mode].add(pair_metrics(loss, chosen, rejected))
        return loss

    def _compute_dtype(self) -> str:
        if self.args.bf16 or self.args.fp16:
            return "bfloat16" if self.args.bf16 else "float16"
        policy: Any = self.model
        return str(policy.dtype).removeprefix("torch.")

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; counts its tokens, padding left out."""
        self._tokens += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The loss of one evaluation batch; its figures go to the means."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Trainer's loop, with our figures among the metrics so that best-checkpoint selection sees them."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        means = self._means["eval"].take(self.accelerator.gather)
        ours = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        return output._replace(metrics={**(output.metrics or {}), **ours})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last line, throughput and peak memory to a training line."""
        if "loss" in logs:
            logs = {**logs, **self._means["train"].take(self.accelerator.gather)}
            if seconds := self._clock.take():
                logs["tokens_per_second"] = self._tokens * self.accelerator.num_processes / seconds
            self._tokens = 0
            logs["peak_memory_gb"] = peak_memory_gb()
        super().log(logs, start_time)


class _EpochOrder(TrainerCallback):
    """Tells the sampler the epoch, also when a resumed run enters one in the middle."""

    def __init__(self, sampler: EpochSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class _StepClock(TrainerCallback):
    """Seconds spent in training steps, data loading included, evaluation and saving left out."""

    def __init__(self) -> None:
        self.seconds, self._mark = 0.0, time.monotonic()

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds += time.monotonic() - self._mark
        self._mark = time.monotonic()

    def _restart(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark = time.monotonic()

    on_train_begin = on_epoch_begin = on_evaluate = on_save = _restart
