"""The figures of a finished demonstration: every checkpoint measured, and the table of the policies."""

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from .folder import DemoFolder, read_jsonl


def collect(
    demo: DemoFolder, plugins: Sequence[str], seed: int, echo: Callable[[str], None]
) -> dict[str, Any]:
    """Sample the reference and every checkpoint of the runs on the held-out prompts.

    Returns:
        The content of results.json: ``reference``, a measurement; ``policies``, for each of ``plugins`` its
        measurements by step, the finished policy last; ``curves``, see :func:`~.picture.kl_curves`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..progress import Progress
    from ..quiet import quiet_libraries
    from .measure import measure
    from .picture import kl_curves

    prompts = [row["prompt"] for row in read_jsonl(demo.prompts)]
    runs = {name: demo.path / "runs" / name for name in plugins}
    events = {name: read_jsonl(run / "metrics.jsonl") for name, run in runs.items()}
    # Checkpoints on the way only show a path: half the prompts will do for them.
    places = {
        name: [
            (step, place, prompts if place == runs[name] else prompts[: len(prompts) // 2])
            for step, place in checkpoints(runs[name], events[name])
        ]
        for name in plugins
    }
    total = len(prompts) + sum(len(asked) for found in places.values() for *_, asked in found)
    results: dict[str, Any] = {"seed": seed, "policies": {}}
    echo(f"\nSampling the reference and every checkpoint on up to {len(prompts)} held-out prompts.")
    with quiet_libraries(), Progress("measuring", total, "samples") as progress:
        tokenizer = AutoTokenizer.from_pretrained(demo.model)
        reference = AutoModelForCausalLM.from_pretrained(demo.model)

        def measured(policy: Any, asked: list[str]) -> dict[str, Any]:
            found = measure(policy, reference, tokenizer, asked, seed=seed + 1, quiet=True).as_dict()
            progress.advance(len(asked))
            return {**found, "samples": len(asked)}

        results["reference"] = measured(reference, prompts)
        for name, asked_of in places.items():
            results["policies"][name] = [
                {"step": step, **measured(AutoModelForCausalLM.from_pretrained(place), asked)}
                for step, place, asked in asked_of
            ]
            evaluations = [e for e in events[name] if "eval_rewards/accuracies" in e]
            if evaluations:
                accuracy = evaluations[-1]["eval_rewards/accuracies"]
                results["policies"][name][-1]["heldout_accuracy"] = accuracy
    results["curves"] = {name: kl_curves(events[name]) for name in plugins}
    return results


def checkpoints(run: Path, events: Sequence[dict[str, Any]]) -> list[tuple[int, Path]]:
    """The saved models of a run with their steps, in order; the finished policy is the last."""
    last = max(event["step"] for event in events)
    found = [(int(place.name.rpartition("-")[2]), place) for place in run.glob("checkpoint-*")]
    return [*sorted(item for item in found if item[0] < last), (last, run)]


def table(results: dict[str, Any]) -> str:
    """The figures of the reference and of the finished policies, with 95 % intervals, as lines of text."""
    from rich.console import Console
    from rich.table import Table

    def estimate(value: dict[str, float], form: str) -> str:
        return f"{value['mean']:{form}} ± {1.96 * value['error']:.2f}"

    view = Table(title=f"{results['reference']['samples']} held-out prompts, 95 % intervals; KL in nats")
    view.add_column("policy")
    for heading in (
        "expected reward",
        "KL(reference ‖ policy)",
        "KL(policy ‖ reference)",
        "held-out accuracy",
        "tokens",
    ):
        view.add_column(heading, justify="right")
    rows = {"reference": results["reference"], **{name: p[-1] for name, p in results["policies"].items()}}
    for name, row in rows.items():
        accuracy = row.get("heldout_accuracy")
        view.add_row(
            name,
            estimate(row["reward"], "+.2f"),
            estimate(row["forward_kl"], ".2f"),
            estimate(row["reverse_kl"], ".2f"),
            "" if accuracy is None else f"{accuracy:.1%}",
            f"{row['tokens']:.1f}",
        )
    console = Console(file=StringIO(), width=110)
    console.print(view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text
