"""transformers.Trainer with the preference loss, our data order and our log."""

from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from ..objective import Completions, Objective, PairLoss
from ..scoring.forward import enable_scoring
from .agreement import check_agreement, quantization_in
from .batches import Batching, MicroBatch, pairs_in, tokens_of
from .clock import StepClock
from .data import CachedPairs, EpochSampler
from .divergences import ExactDivergences
from .evaluation import EvaluationBatches
from .exchange import before_the_last, evened
from .guard import Guard
from .lora import has_lora, trained_state
from .metrics import Means, pair_metrics, peak_memory_gb
from .order import EpochOrder
from .resuming import StepsAsAsked, load_process, save_process
from .running import RunningMeans
from .sides import policy_sides


class PreferenceTrainer(Trainer):
    """Trains a causal language model on cached pairs; only the policy is in memory.

    Args:
        model: the policy.
        objective: the loss.
        train_dataset: pairs with the reference's statistics.
        eval_dataset: held-out pairs, several such by name, or None.
        batching: how a batch becomes micro-batches; the batch as one when None.
        estimator: of the forward KL.
        check_start: whether the policy must start at the cached reference.
        dropout: whether the policy has some while it trains.
        kwargs: passed on to Trainer.
    """

    data_collator: Any
    layout_note: str | None = None
    """What to tell the user about how pairs are laid out."""

    # compute_loss divides by the pairs of the whole optimiser step itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        objective: Objective,
        train_dataset: CachedPairs,
        eval_dataset: CachedPairs | dict[str, CachedPairs] | None = None,
        *,
        batching: Batching | None = None,
        estimator: str = "fitted",
        check_start: bool = True,
        dropout: bool = False,
        **kwargs: Any,
    ):
        # Before Trainer sees the model: autocast and the parallel wrappers must end up around our forward.
        self._exact = ExactDivergences.of(train_dataset.reader, objective.needs, kwargs["args"].device)
        enable_scoring(model, self._exact.head)
        self.objective: Objective = objective
        self.estimator, self.check_start, self.dropout = estimator, check_start, dropout
        self.reader = train_dataset.reader
        self._means = {"train": Means(), "eval": Means()}
        self._running = RunningMeans(objective)
        self.guard = Guard(self)
        self._clock = StepClock()
        self._tokens: Any = 0
        self._tokens_since_log = 0
        super().__init__(
            model=model,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=cast(Any, batching or Batching()),
            **kwargs,
        )
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        one = self.args.world_size == 1 or self.args.dataloader_drop_last
        rows = 1 if one else self.args.train_batch_size * self.args.world_size
        self._sampler = EpochSampler(self.reader, seed, rows)
        self.add_callback(EpochOrder(self._sampler))
        self.add_callback(self._clock)
        self.add_callback(StepsAsAsked())

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self._sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The evaluation batches of this process, so that each pair counts once, in one process."""
        data: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        if isinstance(data, str):
            data = cast(Any, self.eval_dataset)[data]
        args = self.args
        rows = EvaluationBatches(len(data), args.eval_batch_size, args.process_index, args.world_size)
        return DataLoader(
            data,
            batch_sampler=rows,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[list[MicroBatch]], Any]:
        """The batches of one optimiser step, each a list of micro-batches, and the pairs of all processes."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        pairs = torch.tensor(sum(map(pairs_in, batches)), device=self.args.device)
        batches = evened(batches, self.accelerator)
        self._running.look_ahead(batches, self)
        return batches, self.accelerator.gather(pairs).sum()

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of a micro-batch's losses over the pairs of the optimiser step, so that cuts change nothing."""
        if not pairs_in([inputs]):
            return 0 * model(**tokens_of(inputs), score_ids=inputs["score_ids"]).logp.sum()
        loss = self._pair_loss(model, inputs, "train" if model.training else "eval")
        if num_items_in_batch is None:
            value = loss.loss.mean()
        else:
            # Data-parallel wrappers average gradients over processes; ours is a sum.
            value = loss.loss.sum() * self.accelerator.num_processes / num_items_in_batch
        return (value, loss) if return_outputs else value

    def _pair_loss(self, model: Any, inputs: dict[str, Tensor], mode: str) -> PairLoss:
        training = mode == "train"
        chosen, rejected = self._sides(model, inputs, training=training)
        if self.check_start:
            self._check_start(chosen, rejected)
        chosen, rejected = self._running.given_to(chosen, rejected, training=training)
        loss = self.objective(chosen, rejected)
        if mode == "train":
            self.guard.add(inputs, loss.loss)
        self._means[mode].add(pair_metrics(loss, chosen, rejected))
        return loss

    def training_sides(self, model: Any, inputs: MicroBatch) -> tuple[Completions, Completions] | None:
        """Both sides of a micro-batch as the loss is given them, without gradient; None of an idle one."""
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            placed = self._prepare_inputs(inputs)
            if pairs_in([placed]):
                return self._sides(model, placed, training=True)
            self.compute_loss(model, placed)
        return None

    def _sides(self, model: Any, inputs: MicroBatch, *, training: bool) -> tuple[Completions, Completions]:
        self.guard.enter(inputs)
        return policy_sides(
            model,
            inputs,
            self.reader.identity["statistics"],
            self._exact,
            needs=self.objective.needs,
            estimator=self.estimator,
            # An evaluation draws the same every time, and in every run.
            seed=self._sampler.seed if training else 0,
            epoch=self._sampler.epoch if training else 0,
        )

    def _check_start(self, chosen: Completions, rejected: Completions) -> None:
        check_agreement(
            chosen,
            rejected,
            self.reader.identity["reference"],
            self._compute_dtype(),
            quantization_in(self.model),
        )
        self.check_start = False

    def _compute_dtype(self) -> str:
        if self.args.bf16 or self.args.fp16:
            return "bfloat16" if self.args.bf16 else "float16"
        policy: Any = self.model
        return str(policy.dtype).removeprefix("torch.")

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one batch, micro-batch after micro-batch; counts its pairs' tokens."""
        *others, last = inputs
        if self.check_start and self.dropout:
            # The reference had none. The last micro-batch has pairs where this process has any.
            sides = self.training_sides(model, last)
            if sides is not None:
                self._check_start(*sides)
        losses = []
        for micro in others:
            with before_the_last(self.accelerator, model):
                losses.append(super().training_step(model, micro, num_items_in_batch))
        losses.append(super().training_step(model, last, num_items_in_batch))
        self._tokens += sum(micro["tokens"].sum() for micro in inputs if pairs_in([micro]))
        return torch.stack(losses).sum()

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Score one evaluation batch, which may be empty; its figures and its loss go to the means."""
        # Not inference_mode: FSDP2 keeps the buffers that it gathers weights in, and training could not use
        # those of inference.
        with torch.no_grad(), self.compute_loss_context_manager():
            for micro in evened([cast(Any, self._prepare_input(inputs))], self.accelerator)[0]:
                self.compute_loss(model, micro)
        return None, None, None

    def floating_point_ops(self, inputs: Any) -> int:
        """Of a batch, as transformers estimates it."""
        return sum(super(PreferenceTrainer, self).floating_point_ops(micro) for micro in inputs)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Nothing: :meth:`training_step` counts them."""

    def store_flos(self) -> None:
        """Put what the processes counted since the last time into the state, which checkpoints hold."""
        super().store_flos()
        of_process = torch.as_tensor(self._tokens, device=self.args.device)
        tokens = int(self.accelerator.gather(of_process).sum())
        self.state.num_input_tokens_seen += tokens
        self._tokens_since_log += tokens
        self._tokens = 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        policy: Any = self.accelerator.unwrap_model(self.model)
        # Of a sharded model, the first process alone has a state.
        if has_lora(policy) and self.args.should_save:
            state_dict = trained_state(policy, state_dict)
        super()._save(output_dir, state_dict)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.check_step(norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.guard.check_weights(model)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._process_state(save_process, output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            self._process_state(load_process, checkpoint)

    def _process_state(self, pass_on: Any, folder: str) -> None:
        args = self.args
        pass_on(folder, args.process_index, args.world_size, self._means["train"], self._running)

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
        means = self._means["eval"].take(gather_object)
        ours = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        return output._replace(metrics={**(output.metrics or {}), **ours})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last line, throughput and peak memory to a training line."""
        if "loss" in logs:
            logs = {**logs, **self._means["train"].take(gather_object)}
            if seconds := self._clock.take():
                logs["tokens_per_second"] = self._tokens_since_log / seconds
            logs["num_tokens"] = self.state.num_input_tokens_seen
            self._tokens_since_log = 0
            logs["peak_memory_gb"] = peak_memory_gb()
        super().log(logs, start_time)
