"""Every command of the README and the how-to pages, in order, in a folder that holds what they speak of."""

import glob
import gzip
import json
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from doc_blocks import blocks_of
from peft import LoraConfig, get_peft_model
from remote import environment, s3_server
from support import make_model, make_tokenizer, sentence, write_pairs

import tdpo
from tdpo.core.cli import tdpo as tdpo_command

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("quickstart", "caches", "training", "report", "runs")),
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/how-to/*.md")),
]

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token if m.role == 'assistant' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Name -> seed of its weights: most are one model, under every name that the pages give it.
MODELS = {
    **dict.fromkeys(("model", "MODEL", "meta-llama/Llama-3.2-1B-Instruct", "model-7b", "base"), 0),
    "sft-on-chosen": 1,
    "sft-on-rejected": 2,
    "other-model": 3,
}
_MAKES = (["cache", "build"], ["cache", "merge"], ["cache", "export"])
# Two optimiser steps show that a command runs.
SHORT = "build: {shard_rows: 8}\nfit: {max_steps: 2, logging_steps: 1}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with small models under the names that the pages give them, and data of every form."""
    tokenizer = make_tokenizer(extra=("<|user|>", "<|assistant|>"))
    tokenizer.chat_template = TEMPLATE
    for name, seed in MODELS.items():
        model = make_model(len(tokenizer), seed=seed, max_position_embeddings=1024)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        if name == "base":
            adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2))
            adapted.save_pretrained(tmp_path / "lora")
    write_pairs(tmp_path / "pairs.jsonl", 24)
    for seed, name in enumerate(("heldout", "a", "more/b"), 1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_pairs(tmp_path / f"{name}.jsonl", 12, seed=seed)
    _write_hh(tmp_path / "harmless-base")
    _write_conversations(tmp_path / "HuggingFaceH4" / "ultrafeedback_binarized")
    prompts = [{"prompt": f"the film was {word}"} for word in ("good", "bad", "dull")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "rewards.py").write_text(
        "def brevity(prompts, completions): return [-len(c) for c in completions]\n"
    )
    (tmp_path / "tdpo.yaml").write_text(SHORT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    return tmp_path


def _write_hh(folder):
    folder.mkdir()
    rng = random.Random(3)
    for name, rows in (("train", 24), ("test", 12)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            for _ in range(rows):
                before = f"\n\nHuman: {sentence(rng, 4)}\n\nAssistant: "
                row = {side: before + sentence(rng, 5) for side in ("chosen", "rejected")}
                file.write(json.dumps(row) + "\n")


def _write_conversations(folder):
    from datasets import Dataset

    (folder / "data").mkdir(parents=True)
    rng = random.Random(4)
    for split in ("train_prefs", "test_prefs"):
        rows = []
        for _ in range(16):
            asked = {"role": "user", "content": sentence(rng, 4)}
            sides = {
                side: [asked, {"role": "assistant", "content": sentence(rng, 5)}]
                for side in ("chosen", "rejected")
            }
            rows.append({"prompt": asked["content"], **sides})
        # As the hub names the files of a split.
        Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_they_stand(page, folder):
    blocks = [block for block in blocks_of(ROOT / page) if block.language in _RUN and block.not_run is None]
    assert blocks
    _PREPARE.get(page, lambda: None)()
    with _store(page, folder):
        for block in blocks:
            try:
                _RUN[block.language](block, folder)
            except AssertionError as error:
                raise AssertionError(f"{page}:{block.line}: {error}") from None


def _caches():
    for name in ("tdpo-cache", "cache-dev", "cache-test"):
        tdpo.build_cache("model", "pairs.jsonl", name, quiet=True)


def _finished_runs():
    _caches()
    for name in ("dpo", "tdpo1", "tdpo2"):
        tdpo.fit(name, max_steps=64, save_steps=64, eval_cache=["cache-dev"], eval_steps=32, quiet=True)


# What is there already where a page begins.
_PREPARE = {
    "docs/training.md": _caches,
    "docs/report.md": _finished_runs,
    "docs/runs.md": _finished_runs,
}


def _run_commands(block, folder):
    for command in block.commands:
        words = [each for word in shlex.split(command, comments=True) for each in _expanded(word)]
        if words[0] != "tdpo":
            done = subprocess.run(["bash", "-euc", command], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, (command, done.stderr)
            continue
        # A page may make the same thing twice, in two ways.
        if (words[1] == "fit" and "--resume" not in words) or words[1:3] in _MAKES:
            words.append("--overwrite")
        result = CliRunner().invoke(tdpo_command, words[1:])
        assert result.exit_code == 0, (command, result.output[-2000:], result.exception)


def _expanded(word):
    """As a shell does with a pattern that is not quoted; ``*`` in these pages stands for runs."""
    return sorted(glob.glob(word)) if word.startswith("runs/*") else [word]


def _run_python(block, folder):
    # It makes anew what the commands before it made.
    for name in ("runs", "tdpo-cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    exec(compile(block.text, "block", "exec"), {})


def _run_sql(block, folder):
    import duckdb

    assert duckdb.sql(block.text).fetchall()


_RUN = {"bash": _run_commands, "python": _run_python, "sql": _run_sql}


def _store(page, folder):
    """The S3 store that a page writes to, with its bucket."""
    from contextlib import ExitStack

    stack = ExitStack()
    if "s3://" in (ROOT / page).read_text():
        import s3fs

        stack.enter_context(environment(stack.enter_context(s3_server(folder / "moto.log"))))
        s3fs.S3FileSystem().mkdir("bucket")
    return stack
