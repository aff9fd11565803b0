"""Runs as tdpo fit leaves them, made up: for what only reads them."""

import json
import math
from pathlib import Path

import yaml

FIGURES = ("loss", "rewards/accuracies", "rewards/margins", "kl/chosen", "kl/rejected", "kl/margin")


def value(figure, step, seed=0):
    """What the made-up runs logged: known, different everywhere, and of a size that is easily told apart."""
    return 1 + FIGURES.index(figure) + math.sin(step / 7 + seed) / 4 + step * 1e-5 * (seed + 1)


def make_run(
    folder,
    steps=40,
    *,
    every=1,
    evaluate=10,
    evaluations=("",),
    seed=0,
    plugin="tdpo2",
    options=None,
    record=None,
    figures=FIGURES,
):
    """A run of so many steps that logged every ``every`` of them and evaluated every ``evaluate``."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    caches = [f"{name}=heldout-{name}" if name else "heldout" for name in evaluations]
    fit = {"plugin": plugin, "cache": "tdpo-cache", "eval_cache": caches, "set": options or {"beta": 0.1}}
    (folder / "tdpo.yaml").write_text(yaml.safe_dump({"fit": fit}), encoding="utf-8")
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    lines = []
    for step in range(steps + 1):
        if step and step % every == 0:
            own = {figure: value(figure, step, seed) for figure in figures}
            lines.append({"step": step, **own, "grad_norm": 1.0, "epoch": step / steps})
        for name in evaluations if step % evaluate == 0 else ():
            prefix = f"eval_{name}_" if name else "eval_"
            lines.append({"step": step, **{f"{prefix}{one}": value(one, step, seed + 10) for one in figures}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return folder


def identity(name):
    """A record of a run that was trained from the cache ``name``."""
    return {"cache": {"base": {"data": {"files": [{"name": name}]}}, "scores": {}}, "evaluation": {}}
