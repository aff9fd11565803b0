"""Collect the figures of a run of run.py into figures.json, and draw kl.png."""

import argparse
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import tdpo

RUNS = ("dpo", "tdpo2")
NAMES = {"dpo": "DPO", "tdpo2": "TDPO2"}
COLOURS = {"dpo": "#0072B2", "tdpo2": "#D55E00"}  # Okabe and Ito's, told apart by every kind of eye
HELD_OUT = ("loss", "rewards/accuracies", "rewards/margins", "kl/chosen", "kl/rejected", "logps/chosen")


def main() -> None:
    """Write figures.json and kl.png into the run's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the folder given to run.py as --work")
    work = parser.parse_args().work
    figures = collect(work)
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    draw({name: read_metrics(work, name) for name in RUNS}, figures["cache-test"], work / "kl.png")
    print(json.dumps(figures, indent=2))


def collect(work: Path) -> dict[str, Any]:
    """Every figure of the run."""
    commands = read_json(work / "commands.json") or []
    return {
        "reference": read_json(work / "reference" / "training.json"),
        "cache": cache_figures(work, "cache"),
        "cache-test": cache_figures(work, "cache-test"),
        **{name: fit_figures(read_metrics(work, name)) for name in RUNS},
        "seconds": {command["name"]: command["seconds"] for command in commands},
    }


def read_json(path: Path) -> Any:
    """A file's content; None where the commands were typed by hand and left no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def cache_figures(work: Path, name: str) -> dict[str, Any]:
    """Pairs used and skipped, size, and the speed that the build printed last."""
    reader = tdpo.open_cache(work / name)
    manifest = reader.manifest
    log = work / f"{name}.log"
    printed = log.read_text(encoding="utf-8") if log.is_file() else ""
    rates = re.findall(r"scoring: .* tokens, ([\d,.]+) tokens/s", printed)
    return {
        "pairs": manifest.rows,
        "skipped": {reason: skipped.count for reason, skipped in manifest.skipped.items()},
        "prompt_tokens": manifest.prompt_tokens,
        "completion_tokens": manifest.completion_tokens,
        "chosen_shorter": round(chosen_shorter(reader), 3),
        "bytes": manifest.bytes,
        "bytes_per_completion_token": round(manifest.bytes / manifest.completion_tokens, 2),
        "tokens_per_second": float(rates[-1].replace(",", "")) if rates else None,
    }


def chosen_shorter(reader: Any) -> float:
    """Share of pairs whose chosen side has fewer tokens: what preferring the shorter one would score."""
    scored = reader.iter(statistics=[])
    differences = [len(each.pair.rejected_ids) - len(each.pair.chosen_ids) for each in scored]
    return statistics.mean(0.5 if d == 0 else float(d > 0) for d in differences)


def read_metrics(work: Path, name: str) -> list[dict[str, Any]]:
    """The logged events of one fit."""
    lines = (work / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def evaluations(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations among the events, one a step."""
    return list({event["step"]: event for event in events if "eval_loss" in event}.values())


def fit_figures(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed and memory of training, and the held-out figures before and after."""
    training = [event for event in events if "tokens_per_second" in event]
    before, *_, after = evaluations(events)
    return {
        "steps": events[-1]["step"],
        "tokens_per_second": spread([event["tokens_per_second"] for event in training]),
        "peak_memory_gb": round(max(event["peak_memory_gb"] for event in training), 3),
        "held_out": {
            when: {name: event[f"eval_{name}"] for name in HELD_OUT}
            for when, event in (("before", before), ("after", after))
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, and what nine and one in ten lie above."""
    tenths = statistics.quantiles(values, n=10)
    return {"median": round(statistics.median(values)), "low": round(tenths[0]), "high": round(tenths[-1])}


def draw(runs: dict[str, list[dict[str, Any]]], held_out: dict[str, Any], path: Path) -> None:
    """The held-out sequential KL of both sides, and the held-out reward accuracy, over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, events in runs.items():
        draw_kl(left, name, evaluations(events))
        draw_accuracy(right, name, evaluations(events), held_out["pairs"])
    left.set_title(f"Drift from the reference, {held_out['pairs']} held-out pairs", loc="left")
    left.set(ylabel="KL(ref ‖ policy), nats a completion", ylim=(0, None))
    for level, word in ((0.5, "chance"), (held_out["chosen_shorter"], "shorter")):
        right.axhline(level, color="0.35", linewidth=1, linestyle=":")
        right.text(0, level, f" {word}", color="0.35", va="bottom", fontsize=9)
    right.set_title("Reward accuracy on them, ± 1 standard error", loc="left")
    right.set(ylabel="share of pairs, chosen rewarded more", ylim=(0.4, 0.7))
    for axes in (left, right):
        axes.set(xlabel="optimiser step", xlim=(0, None))
        axes.grid(axis="y", color="0.9")
        axes.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=150)


def draw_kl(axes: Any, name: str, events: list[dict[str, Any]]) -> None:
    """One run's curves: chosen solid, rejected dashed."""
    steps = [event["step"] for event in events]
    for side, style, marker in (("chosen", "-", "o"), ("rejected", "--", "s")):
        axes.plot(
            steps,
            [event[f"eval_kl/{side}"] for event in events],
            color=COLOURS[name],
            linestyle=style,
            marker=marker,
            markersize=4,
            label=f"{NAMES[name]}, {side}",
        )


def draw_accuracy(axes: Any, name: str, events: list[dict[str, Any]], pairs: int) -> None:
    """One run's accuracy with its standard error, without step 0, where all rewards are zero."""
    later = [event for event in events if event["step"] > 0]
    shares = [event["eval_rewards/accuracies"] for event in later]
    aside = 0.008 * later[-1]["step"] * (1 if name == RUNS[0] else -1)
    axes.errorbar(
        [event["step"] - aside for event in later],
        shares,
        yerr=[math.sqrt(share * (1 - share) / pairs) for share in shares],
        color=COLOURS[name],
        marker="o" if name == RUNS[0] else "D",
        markersize=5,
        capsize=3,
        label=NAMES[name],
    )


if __name__ == "__main__":
    main()
