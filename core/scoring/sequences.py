"""What a policy, and a reference beside it, say of sequences that are no pairs of a cache: token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from .exact import FromHidden
from .forward import check_head, completion_hidden
from .head import Head
from .layout import IntArray, Layout, lay_out_sequences
from .placement import input_device, loaded_head
from .sparse import Scores, sparse_scores

_BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}


@dataclass(frozen=True)
class SequenceScores:
    """Of one completion's ``T`` tokens, in nats, float32 [T]; None where there is no reference."""

    logp: np.ndarray
    """log pi(y_t | s_t)."""
    entropy: np.ndarray
    """H(pi(.|s_t))."""
    ref_logp: np.ndarray | None = None
    """log ref(y_t | s_t)."""
    forward_kl: np.ndarray | None = None
    """KL(ref(.|s_t) || pi(.|s_t)), exact."""
    reverse_kl: np.ndarray | None = None
    """KL(pi(.|s_t) || ref(.|s_t)), exact."""


class SequenceScorer:
    """Scores completions with a policy and, where there is one, with the reference.

    Both models are in memory at once; their logits are made and compared a chunk of positions at a time.

    Args:
        policy: a causal language model on its device; set to evaluation mode while it scores.
        reference: another one, of the same vocabulary, on the same device; may be the policy itself.
        batch_tokens: tokens of a forward pass at most, padding included; halved whenever memory runs out.

    Raises:
        ModelError: a head cannot be scored, or the vocabularies have different sizes.
    """

    def __init__(self, policy: Any, reference: Any | None = None, *, batch_tokens: int | None = None):
        self.policy, self.reference = policy, reference
        self._head = _checked_head(policy)
        self._ref_head: Head | None = None
        if reference is not None:
            self._ref_head = self._head if reference is policy else _checked_head(reference)
            if self._ref_head.vocab_size != self._head.vocab_size:
                raise ModelError(
                    f"the policy has {self._head.vocab_size} logits and the reference "
                    f"{self._ref_head.vocab_size}; only models of one vocabulary can be compared"
                )
        self._batch_tokens = batch_tokens or _BATCH_TOKENS.get(self._head.weight.device.type, 4096)

    def score(
        self,
        sequences: Sequence[tuple[IntArray, IntArray]],
        advance: Callable[[int], None] | None = None,
    ) -> list[SequenceScores]:
        """The statistics of each (prompt, completion), in their order.

        Args:
            sequences: token ids; neither part may be empty.
            advance: told how many more sequences are done.

        Raises:
            ModelError: one sequence alone does not fit into memory.
        """
        widths = [len(prompt) + len(completion) for prompt, completion in sequences]
        # Those of similar length together; what does not fit is found first.
        waiting = sorted(range(len(widths)), key=lambda at: -widths[at])
        found: dict[int, SequenceScores] = {}
        while waiting:
            width = widths[waiting[0]]
            batch = waiting[: max(1, self._batch_tokens // width)]
            try:
                scores = self._score(lay_out_sequences([sequences[at] for at in batch]))
            except (torch.OutOfMemoryError, MemoryError) as error:
                self._lower(len(batch), width, error)
                continue
            found |= zip(batch, scores, strict=True)
            waiting = waiting[len(batch) :]
            if advance is not None:
                advance(len(batch))
        return [found[at] for at in range(len(sequences))]

    def _lower(self, count: int, width: int, error: BaseException) -> None:
        """Take half as many sequences at a time as ``count``, which did not fit into memory."""
        if count == 1:
            raise ModelError(
                f"a prompt and its completion of {width:,} tokens do not fit into memory beside the models; "
                "lower --max-tokens, or use models in a lower precision"
            ) from error
        self._batch_tokens = count // 2 * width
        if self._head.weight.is_cuda:
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _score(self, layout: Layout) -> list[SequenceScores]:
        hidden = _hidden(self.policy, layout, self._head)
        ids = layout.labels[:, None].to(hidden.device)
        if self._ref_head is None:
            return _split(sparse_scores(self._head, hidden, ids, entropy=True), None, layout)
        ref_hidden = hidden
        if self.reference is not self.policy:
            ref_hidden = _hidden(self.reference, layout, self._ref_head)
        scores = sparse_scores(
            self._head,
            hidden,
            ids,
            entropy=True,
            reference=FromHidden(self._ref_head, ref_hidden),
            forward_kl=True,
            reverse_kl=True,
        )
        return _split(scores, sparse_scores(self._ref_head, ref_hidden, ids).logp, layout)


def _checked_head(model: Any) -> Head:
    head = loaded_head(model)
    check_head(model, head)
    return head


def _hidden(model: Any, layout: Layout, head: Head) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        return completion_hidden(model, **layout.model_inputs(input_device(model))).to(head.weight.device)
    finally:
        model.train(was_training)


def _split(scores: Scores, ref_logp: Tensor | None, layout: Layout) -> list[SequenceScores]:
    stops = np.cumsum(layout.lengths.numpy())[:-1]

    def pieces(flat: Tensor | None) -> list[np.ndarray | None]:
        if flat is None:
            return [None] * len(layout.lengths)
        return list(np.split(flat.flatten().float().cpu().numpy(), stops))

    columns = (scores.logp, scores.entropy, ref_logp, scores.forward_kl, scores.reverse_kl)
    return [SequenceScores(*row) for row in zip(*map(pieces, columns), strict=True)]
