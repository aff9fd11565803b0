"""The checks of an objective, one after another; the first that fails says what is wrong."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..objective import Objective, PairLoss
from .common import copies, declared, draws_by_seed, fail, options_are_checked, watches_what_is_logged
from .constants import differences
from .made_up import WITH_GRADIENT, Means, Watched, batch, padded_with, rows, tensors
from .results import observed_faults, result_faults

_ALWAYS = {"logp", "ref_logp"}
_HALVES = (slice(0, 2), slice(2, 4))


def check_objective(
    objective: type[Objective] | Objective, *, added: Mapping[str, int] | None = None
) -> None:
    """Check that an objective keeps to the contract of :class:`tdpo.Objective`.

    That it is documented, watches figures that are logged, and its options are checked; its results' shapes;
    that padding never matters; its gradients, by finite differences in float64; that neither the order of the
    pairs nor the other pairs of a batch matter (unless it is ``batch_level``), nor torch's random state; that
    it reads what it declares and nothing else, running means among that; that it is finite at extremes in
    float32 and bfloat16, survives pickling and copying, and gives on a GPU, where there is one, what it gives
    on the CPU.

    Args:
        objective: the class, tried with its defaults, or an instance.
        added: of the added statistics that it needs, those that are vectors of a completion or of the pair:
            name -> length. Others are one number a token.

    Raises:
        ConformanceError: the first check that fails.
    """
    added = added or {}
    cls = objective if isinstance(objective, type) else type(objective)
    declared(cls, Objective)
    one: Objective = cls() if isinstance(objective, type) else objective
    for check in (
        options_are_checked,
        _shapes,
        _draws,
        _observes,
        _reads_what_it_declares,
        _padding_never_matters,
        _gradients,
        _order_and_company,
        _finite_at_extremes,
        _copies,
        _devices,
    ):
        check(one, added)


def _run(objective: Objective, chosen: Watched, rejected: Watched) -> PairLoss:
    return objective(*_with_means(objective, chosen, rejected))


def _with_means(
    objective: Objective, chosen: Watched, rejected: Watched, read: set[str] | None = None
) -> list[Watched]:
    """The sides as a fit gives them to what reads running means: constants, far from those of the batch."""
    values = {
        name: torch.tensor(0.25 + at, dtype=chosen.logp.dtype, device=chosen.logp.device)
        for at, name in enumerate(sorted(objective.running))
    }
    means = Means(values, set() if read is None else read)
    given = [replace(side, running=means) for side in (chosen, rejected)]
    # Copying them reads all of them.
    for side in given:
        side.seen.clear()
    return given


def _shapes(objective: Objective, added: Mapping[str, int]) -> None:
    found = _run(objective, *batch(added))
    for fault in result_faults(found, 4):
        fail(objective, fault)
    for name in ("loss", "chosen_reward", "rejected_reward"):
        dtype = getattr(found, name).dtype
        if dtype != torch.float64:
            fail(objective, f"{name} of float64 statistics is {dtype}: something in it is of lower precision")
    watches_what_is_logged(objective, found.metrics)


def _observes(objective: Objective, added: Mapping[str, int]) -> None:
    """What is kept over a run depends on the pairs trained on, and on nothing else."""
    if not objective.running:
        return
    sides = batch(added, seed=2)
    found = objective.observe(*sides)
    for fault in observed_faults(objective.running, found):
        fail(objective, fault)
    parts = [objective.observe(*(rows(side, half) for side in sides)) for half in _HALVES]
    padded = objective.observe(*(padded_with(side, float("nan")) for side in sides))
    for name, values in found.items():
        whole = values.detach().sum()
        if sum(len(part[name]) for part in parts) != len(values) or not torch.allclose(
            whole, parts[0][name].detach().sum() + parts[1][name].detach().sum()
        ):
            fail(objective, f"observe gives a {name} of a pair that depends on the others of its batch")
        if not torch.equal(values, padded[name]):
            fail(objective, f"observe gives a {name} that changes when padding holds nan")


def _reads_what_it_declares(objective: Objective, added: Mapping[str, int]) -> None:
    chosen, rejected = batch(added)
    means: set[str] = set()
    objective(*_with_means(objective, chosen, rejected, means))
    if unread := objective.running - means:
        fail(objective, f"names {', '.join(sorted(unread))} in `running` and its loss never reads the mean")
    if strange := means - objective.running:
        fail(
            objective,
            f"reads the running mean of {', '.join(sorted(strange))} without naming it in `running`",
        )
    read = set(chosen.seen) | set(rejected.seen)
    # Every log-ratio looks for weights; that asks for nothing.
    undeclared = read - _ALWAYS - set(objective.needs) - {"token_weight"}
    if undeclared:
        fail(objective, f"reads {', '.join(sorted(undeclared))} without naming it in `needs`")
    unused = set(objective.needs) - read
    if unused:
        fail(
            objective,
            f"names {', '.join(sorted(unused))} in `needs` and never reads it: fits would pay for it",
        )


def _padding_never_matters(objective: Objective, added: Mapping[str, int]) -> None:
    results = []
    for fill in (0.0, 1e3, float("nan")):
        sides = tuple(padded_with(side, fill) for side in batch(added))
        loss = _run(objective, *sides).loss
        loss.sum().backward()
        results.append((fill, loss.detach(), sides))
    for fill, loss, sides in results:
        if not torch.equal(loss, results[0][1]):
            fail(objective, f"the loss changes when padding holds {fill}: reduce with side.sum and side.mean")
        for side in sides:
            for name in WITH_GRADIENT:
                gradient = getattr(side, name).grad
                if gradient is not None and bool((gradient[~side.mask] != 0).any()):
                    fail(objective, f"{name} has a gradient at padding that holds {fill}")


def _gradients(objective: Objective, added: Mapping[str, int]) -> None:
    sides = batch(added, pairs=3, seed=1)
    names = ["logp", *sorted(set(objective.needs) & set(WITH_GRADIENT))]
    leaves = [getattr(side, name) for side in sides for name in names]

    def loss(values: Any) -> Tensor:
        parts = [
            replace(side, **dict(zip(names, values[at * len(names) :], strict=False)))
            for at, side in enumerate(sides)
        ]
        return _run(objective, *parts).loss.sum()

    loss(leaves).backward()
    for place, want in enumerate(differences(loss, leaves)):
        leaf = leaves[place]
        got = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        if not torch.allclose(got, want, rtol=1e-5, atol=1e-7):
            side, name = ("chosen", "rejected")[place // len(names)], names[place % len(names)]
            worst = float((got - want).abs().max())
            fail(
                objective, f"the gradient to {name} of {side} is not that of the loss (apart by {worst:.3g})"
            )


def _order_and_company(objective: Objective, added: Mapping[str, int]) -> None:
    sides = batch(added, seed=2)
    whole = _run(objective, *sides).loss.detach()
    order = torch.tensor([2, 0, 3, 1])
    moved = _run(objective, *(rows(side, order) for side in sides)).loss.detach()
    if objective.batch_level:
        if not torch.allclose(moved.sum(), whole.sum()):
            fail(objective, "the batch's loss changes with the order of its pairs")
        if all(_halves_are_the_whole(objective, added, seed) for seed in range(2, 8)):
            fail(
                objective,
                "declares itself batch_level, but no pair's loss depends on the others: fits refuse more",
            )
        return
    if not torch.allclose(moved, whole[order]):
        fail(objective, "a pair's loss changes with the order of the batch")
    half = _run(objective, *(rows(side, slice(0, 2)) for side in sides)).loss.detach()
    if not torch.allclose(half, whole[:2]):
        fail(
            objective,
            "a pair's loss depends on the others of its batch: declare `batch_level: ClassVar[bool] = True`",
        )


def _halves_are_the_whole(objective: Objective, added: Mapping[str, int], seed: int) -> bool:
    sides = batch(added, seed=seed)
    halves = [_run(objective, *(rows(side, half) for side in sides)).loss for half in _HALVES]
    return torch.allclose(torch.cat(halves).detach(), _run(objective, *sides).loss.detach())


def _draws(objective: Objective, added: Mapping[str, int]) -> None:
    sides = batch(added)
    draws_by_seed(objective, lambda: [_run(objective, *sides).loss.detach()])


def _finite_at_extremes(objective: Objective, added: Mapping[str, int]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for apart in (1e4, -1e4, 0.0):
            sides = _extreme(batch(added, pairs=2, dtype=dtype), apart)
            found = _run(objective, *sides)
            found.loss.sum().backward()
            gradients = [side.logp.grad for side in sides if side.logp.grad is not None]
            where = f"in {str(dtype).removeprefix('torch.')} at log-ratios of {apart:g}"
            if not bool(found.loss.isfinite().all()):
                fail(objective, f"the loss is not finite {where}")
            if not all(bool(gradient.isfinite().all()) for gradient in gradients):
                fail(objective, f"the gradient is not finite {where}")


def _extreme(sides: tuple[Watched, Watched], apart: float) -> list[Watched]:
    """One-token completions, their log-ratios ``apart`` on chosen and its negative on rejected."""
    made = []
    for sign, side in zip((1, -1), sides, strict=True):
        mask = torch.zeros_like(side.mask)
        mask[:, 0] = True
        logp = torch.full_like(side.logp, -1.0).requires_grad_()
        made.append(replace(side, mask=mask, logp=logp, ref_logp=logp.detach() - sign * apart))
    return made


def _copies(objective: Objective, added: Mapping[str, int]) -> None:
    want = _run(objective, *batch(added)).loss
    for what, other in copies(objective):
        if other != objective or not torch.equal(_run(other, *batch(added)).loss, want):
            fail(objective, f"is another after {what}")


def _devices(objective: Objective, added: Mapping[str, int]) -> None:
    if not torch.cuda.is_available():
        return
    sides = batch(added)
    want = _run(objective, *sides).loss.detach()
    moved = [_to(side, "cuda") for side in sides]
    got = _run(objective, *moved).loss
    if not got.is_cuda:
        fail(objective, "the loss of statistics on a GPU is on the CPU")
    if not torch.allclose(got.detach().cpu(), want):
        fail(objective, "gives another loss on a GPU than on the CPU")


def _to(side: Watched, device: str) -> Watched:
    extra = {name: side.extra[name].to(device) for name in [*side.seen]}
    values: dict[str, Any] = {name: value.to(device) for name, value in tensors(side).items()}
    return replace(side, **values, extra=extra)
