"""The contenders of a training step: ours from a cache, TRL's DPOTrainer, online TDPO2.

All train the same model, which differs from the reference, on the same pairs in steps of the same
size, with the same optimiser, gradient clipping and precision. The learning rate is so small that the model
stays what it is: every contender does the same work at every repetition and must find the same loss.

A case is a dict with

* shape, lengths: of :mod:`workload`; pairs: of a step; steps: of a repetition, which reads every pair once;
* shared: the folder of what :func:`prepare` wrote;
* checkpointing: whether activations are recomputed; batch_tokens: of the caches' scoring;
* distributions: of the caches to write;
* for ours: plugin; distribution: what the cache holds of the reference, ``sparse`` or ``exact``; and options:
  any of ``tdpo fit``.
"""

import time
from pathlib import Path
from typing import Any

import contenders
import workload

LEARNING_RATE = 1e-12
OPTIMIZER = "adamw_torch_fused"


def prepare(case: dict[str, Any]) -> contenders.Repeat:
    """Write the caches of a case and the pairs as TRL takes them."""
    import datasets

    import tdpo

    datasets.disable_progress_bars()
    shared = Path(case["shared"])
    model, pairs = workload.make_model(case["shape"]), pairs_of(case)
    for distribution in case["distributions"]:
        statistics = workload.statistics_of(model, distribution)
        scorer = workload.make_scorer(model, statistics, batch_tokens=case["batch_tokens"])
        workload.write_cache(scorer, statistics, pairs, shared / distribution)
    rows = [
        {
            "prompt_ids": record.pair.prompt_ids.tolist(),
            "chosen_ids": record.pair.chosen_ids.tolist(),
            "rejected_ids": record.pair.rejected_ids.tolist(),
            "ref_chosen_logps": float(record.chosen.ref_logp.sum()),
            "ref_rejected_logps": float(record.rejected.ref_logp.sum()),
        }
        for record in tdpo.open_cache(shared / case["distributions"][0])
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(shared / "trl"))
    return contenders.timed(lambda: None)


def pairs_of(case: dict[str, Any]) -> list[Any]:
    """All pairs of a repetition."""
    vocab = workload.SHAPES[case["shape"]]["vocab"]
    return workload.make_pairs(case["lengths"], case["pairs"] * case["steps"], vocab)


def policy_of(case: dict[str, Any]) -> Any:
    """The reference with noise on its weights: far enough from it for a KL that shows."""
    import torch

    model = workload.make_model(case["shape"])
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            # Norms are all ones: they have no spread, and stay.
            weight += 0.5 * weight.float().std().to(weight.dtype) * torch.randn_like(weight)
    return model.train()


# --- Ours and TRL's, both a transformers.Trainer ------------------------------------------------------------


def ours(case: dict[str, Any]) -> contenders.Repeat:
    """What ``tdpo fit`` trains with, from the reader to the optimiser."""
    import tdpo
    from tdpo.core.config.fit import FitConfig
    from tdpo.core.training.arguments import training_arguments
    from tdpo.core.training.run import make_trainer

    model = policy_of(case)
    config = FitConfig(
        plugin=[case["plugin"]],
        cache=str(Path(case["shared"]) / case["distribution"]),
        output=str(Path(case["folder"]) / "run"),
        learning_rate=LEARNING_RATE,
        schedule="constant",
        max_steps=case["steps"],
        batch_size=case["pairs"],
        optimizer=OPTIMIZER,
        dtype=str(model.dtype).removeprefix("torch."),
        gradient_checkpointing=case["checkpointing"],
        training={"save_strategy": "no"},
        **case["options"],
    )
    trainer = make_trainer(
        config,
        tdpo.objective(case["plugin"]),
        tdpo.open_cache(config.cache),
        {},
        model,
        args=training_arguments(config, False),
        check_start=False,
    )
    return steps_of(trainer)


def trl(case: dict[str, Any]) -> contenders.Repeat:
    """TRL's DPOTrainer with the reference's log-probabilities precomputed."""
    import datasets
    from transformers import PrinterCallback, ProgressCallback
    from trl import DPOConfig, DPOTrainer

    class Precomputed(DPOTrainer):
        """The pairs have their tokens and their reference."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    model = policy_of(case)
    options = DPOConfig(
        str(Path(case["folder"]) / "run"),
        precompute_ref_log_probs=True,
        max_length=None,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=case["steps"],
        per_device_train_batch_size=case["pairs"],
        optim=OPTIMIZER,
        gradient_checkpointing=case["checkpointing"],
        use_liger_kernel=case["options"].get("liger", False),
        # The weights are in bfloat16 where there is a GPU, as ours are: nothing is left for autocast.
        bf16=False,
        use_cpu=model.device.type == "cpu",
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Precomputed(
        model,
        args=options,
        train_dataset=datasets.load_from_disk(str(Path(case["shared"]) / "trl")),
        processing_class=workload.make_tokenizer(model.config.vocab_size),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return steps_of(trainer)


def steps_of(trainer: Any) -> contenders.Repeat:
    """Repetitions of ``trainer.train()``, less what sets its loop up.

    Their seconds go from before the first step's data are read to the end of the last step.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started: float | None = None
        seconds = 0.0

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            if self.started is None:
                contenders.wait_for_gpu()
                self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.started is not None and state.global_step == state.max_steps:
                contenders.wait_for_gpu()
                self.seconds, self.started = time.perf_counter() - self.started, None

    clock = Clock()
    trainer.add_callback(clock)

    def repeat() -> dict[str, Any]:
        found = trainer.train()
        return {"seconds": clock.seconds, "loss": found.training_loss}

    return repeat


# --- Both models in memory ----------------------------------------------------------------------------------


def online(case: dict[str, Any]) -> contenders.Repeat:
    """A plain loop of TDPO2 with its reference in memory."""
    import torch
    from online import batch_of, tdpo2_loss

    policy, reference = policy_of(case), workload.make_model(case["shape"]).requires_grad_(False)
    if case["checkpointing"]:
        policy.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    pairs = pairs_of(case)

    def work() -> dict[str, Any]:
        losses = []
        for start in range(0, len(pairs), case["pairs"]):
            batch = batch_of(pairs[start : start + case["pairs"]], policy.device)
            loss = tdpo2_loss(policy, reference, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return {"loss": float(torch.stack(losses).mean())}

    return contenders.timed(work)


CONTENDERS: dict[str, contenders.Setup] = {"prepare": prepare, "ours": ours, "trl": trl, "online": online}
