"""The page of a cache: its figures are those of the pairs, and MallowsPO's are MallowsPO's."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import tdpo
from tdpo.cache.summary import Spread
from tdpo.core.cli import tdpo as command_line
from tdpo.core.composing import compose, prepare
from tdpo.core.report.cache_figures import cache_figures
from tdpo.core.report.cache_page import histogram

pytest.importorskip("vl_convert")


def entropies(cache):
    """[N, 2] float64: the mean over each completion."""
    return np.array(
        [
            [one.side(side).ref_entropy.astype(np.float64).mean() for side in ("chosen", "rejected")]
            for one in tdpo.open_cache(cache)
        ]
    )


def test_the_dispersion_is_the_papers(cache):
    found = cache_figures(tdpo.open_cache(cache), text=False).dispersion
    reader = tdpo.open_cache(cache)
    expected = -np.log(entropies(cache).mean(1) / np.log(reader.vocab_size))
    assert found.pairs == len(reader)
    assert found.spread.mean == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_allclose(found.quartiles, np.quantile(expected, [0.25, 0.5, 0.75]), rtol=1e-12)
    assert found.spread.counts == tuple(np.histogram(expected, found.spread.edges)[0])


def test_scale_auto_divides_by_the_mean_that_is_drawn(cache):
    reader = tdpo.open_cache(cache)
    prepared = prepare(compose(["dpo"], ["mallows"], {"scale": "auto"}), reader)
    scale = dict(prepared.weightings)["mallows"].scale
    drawn = cache_figures(reader, text=False).dispersion.spread.mean
    assert scale * drawn == pytest.approx(1, rel=1e-5)


def test_figures_of_completions_and_entries_are_those_of_the_pairs(cache):
    summary = cache_figures(tdpo.open_cache(cache), text=False).summary
    assert summary.completion_entropy.mean == pytest.approx(entropies(cache).mean(), rel=1e-6)
    entries = [
        np.isfinite(one.side(side).dist_logp.astype(np.float64)).sum(-1)
        for one in tdpo.open_cache(cache)
        for side in ("chosen", "rejected")
    ]
    entries = np.concatenate(entries)
    assert summary.entries.mean == pytest.approx(entries.mean())
    assert sum(summary.entries.counts) == len(entries)
    assert (summary.entries.minimum, summary.entries.maximum) == (entries.min(), entries.max())


def test_a_histogram_has_a_bar_for_each_bin():
    spread = Spread.of(np.random.default_rng(0).normal(size=1000), 40)
    rows = histogram(spread, "x", "pairs")["layer"][0]["data"]["values"]
    assert [row["count"] for row in rows] == list(spread.counts)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert [row["to"] for row in rows[:-1]] == [row["from"] for row in rows[1:]]


def test_pairs_are_text_where_the_reference_is_there(cache, reference, tmp_path, pairs):
    from transformers import AutoTokenizer

    reader = tdpo.open_cache(cache)
    found = cache_figures(reader)
    assert found.notes == []
    tokenizer = AutoTokenizer.from_pretrained(reference)
    for shown in found.pairs:
        pair = next(one.pair for one in reader if one.pair.pair_id == shown.pair_id)
        assert shown.parts["chosen"] == tokenizer.decode(pair.chosen_ids)
        assert shown.lengths == {
            "prompt": len(pair.prompt_ids),
            "chosen": len(pair.chosen_ids),
            "rejected": len(pair.rejected_ids),
        }
    elsewhere = moved(cache, tmp_path)
    found = cache_figures(tdpo.open_cache(elsewhere))
    assert "Pairs are shown as token ids" in found.notes[0]
    assert re.fullmatch(r"[\d ]+", found.pairs[0].parts["prompt"])


def moved(cache, tmp_path):
    """A copy of the cache whose reference is nowhere."""
    import shutil

    copy = shutil.copytree(cache, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["provenance"]["reference"] = str(tmp_path / "gone")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_the_command_writes_page_and_pictures(cache, tmp_path):
    page, pictures = tmp_path / "c.html", tmp_path / "png"
    result = CliRunner().invoke(
        command_line, ["cache", "info", str(cache), "--html", str(page), "--png", str(pictures), "--no-text"]
    )
    assert result.exit_code == 0
    text = page.read_text()
    assert "Some of its pairs" not in text
    for part in ("tdpo cache build --ref", "No rows of the data were left out", "Dispersion over prompts"):
        assert part in text
    assert {path.name for path in pictures.iterdir()} == {
        f"{name}.png"
        for name in (
            "length-prompt", "length-chosen", "length-rejected", "entropy", "completion-entropy", "tail-mass",
            "entries", "dispersion", "bytes",
        )
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.iterdir())
    assert page.stat().st_size < 2_000_000


def test_skipped_rows_added_scores_and_caches_without_statistics_are_told(reference, pairs, tmp_path):
    with pairs.open() as file:
        rows = [json.loads(line) for line in file]
    rows[3]["chosen"] = None
    tdpo.build_cache(reference, rows, tmp_path / "c", quiet=True, distribution="none")
    tdpo.add_statistics(tmp_path / "c", "wide", head=12, tail=4, quiet=True)
    tdpo.cache_page(tmp_path / "c", tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert "missing chosen" in text
    assert "tdpo cache add --name wide --head 12 --tail 4" in text
    assert "Cached entries of a token" not in text
    # Data given in Python has no command.
    assert "not recorded" in text


def test_an_unfinished_cache_is_drawn_and_an_empty_one(cache, tmp_path):
    import shutil

    copy = shutil.copytree(cache, tmp_path / "c")
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    document["complete"] = False
    del document["shards"][1:]
    path.write_text(json.dumps(document))
    tdpo.cache_page(copy, tmp_path / "c.html")
    assert "1 of 3 shards finished" in (tmp_path / "c.html").read_text()
    document["shards"] = []
    path.write_text(json.dumps(document))
    tdpo.cache_page(copy, tmp_path / "c.html", png=tmp_path / "png")
    assert "What it is" in (tmp_path / "c.html").read_text()


def test_help_imports_no_torch():
    code = (
        "import sys; from tdpo.core.cli import main\n"
        "try: main(['cache', 'info', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'jinja2', 'vl_convert'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
