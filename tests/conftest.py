"""Fixtures of the tests that go through the stages."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from browser import browser as browser
from support import make_model, make_tokenizer, write_pairs


def pytest_collection_modifyitems(items):
    """Tests marked ``gpu`` are skipped where torch finds no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A saved reference model with its tokenizer."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """48 preference pairs as JSONL."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 48)


@pytest.fixture(scope="session")
def cache(tmp_path_factory, reference, pairs):
    """A finished cache of the pairs, three shards long. Treat as read-only."""
    import tdpo

    folder = tmp_path_factory.mktemp("cache") / "tdpo-cache"
    tdpo.build_cache(reference, pairs, folder, shard_rows=20, quiet=True)
    return folder
