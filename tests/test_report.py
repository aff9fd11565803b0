"""The report: what it reads of runs, what it says of them, and the numbers that its charts draw."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup
from report_runs import FIGURES, identity, make_run, value

import tdpo
from tdpo.core.report.curves import Curve, curve_spec, curves_section, known_figures
from tdpo.core.report.embedding import as_script_json, as_script_text, packed
from tdpo.core.report.frontier import frontier_section
from tdpo.core.report.gather import Line, gather
from tdpo.core.report.overview import cache_notes
from tdpo.core.report.page import Section, figure, page, write_page
from tdpo.core.report.pair_figures import Looked, PairFigures
from tdpo.core.report.pairs import histogram, pairs_section, percentiles, rank
from tdpo.core.report.png import picture
from tdpo.core.report.tables import Column, number, table
from tdpo.core.report.theme import PAPER
from tdpo.core.report.thinning import MOST_POINTS, Grid
from tdpo.core.runs.folder import RunFolder, open_runs


@pytest.fixture
def two_runs(tmp_path):
    make_run(tmp_path / "runs" / "a", seed=0)
    make_run(tmp_path / "runs" / "b", seed=1, plugin="dpo")
    return gather(open_runs([tmp_path / "runs" / "a", tmp_path / "runs" / "b"]))


def line(points, run=0, kind="training"):
    return Line(run, f"run {run}", kind, points)


# What is drawn of a line


def test_a_line_of_few_points_is_drawn_as_it_is():
    points = [(step, math.sin(step)) for step in range(1, MOST_POINTS + 1)]
    drawn = Grid.over([line(points)]).points(line(points))
    assert [(one.step, one.value) for one in drawn] == points


@settings(deadline=None, max_examples=20)
@given(
    steps=st.integers(MOST_POINTS + 1, 20_000),
    every=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_long_line_is_drawn_by_means_of_all_its_values(steps, every, seed):
    values = np.random.default_rng(seed).normal(size=steps)
    whole = line([(every * (at + 1), float(one)) for at, one in enumerate(values)])
    grid = Grid.over([whole])
    drawn = grid.points(whole)
    assert len(drawn) <= MOST_POINTS
    place = 0
    for one in drawn:
        inside = values[place : one.last // every]
        place += len(inside)
        assert one.first <= every * (place - len(inside) + 1)
        assert one.value == pytest.approx(inside.mean(), abs=1e-12)
        assert (one.low, one.high) == (inside.min(), inside.max())
    assert place == steps
    assert drawn[-1].last == steps * every


def test_lines_of_a_chart_have_values_at_the_same_places():
    long = line([(step, 1.0) for step in range(1, 3001)])
    sparse = line([(step, 2.0) for step in range(0, 3001, 100)], run=1)
    grid = Grid.over([long, sparse])
    places = {one.step for one in grid.points(long)} | {0}
    assert {one.step for one in grid.points(sparse)} <= places


def test_values_that_are_not_finite_are_left_out_and_counted():
    curve = Curve("loss", [line([(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)])])
    rows = curve_spec(curve)["data"]["values"]
    assert [row["step"] for row in rows] == [1, 4]
    html = page("t", [Section("s", "s", figure("c"), {"c": curve_spec(curve)})])
    assert "NaN" not in html.split('id="tdpo-charts"')[1].split("</script>")[0]


def test_a_chart_holds_every_logged_value(two_runs):
    for figure_name in FIGURES:
        curve = Curve(figure_name, [one for run in two_runs for one in run.lines(figure_name)])
        rows = curve_spec(curve)["data"]["values"]
        found = Counter((row["run"], row["kind"]) for row in rows)
        assert found == {(run, kind): n for run in "ab" for kind, n in (("training", 40), ("evaluation", 5))}
        for row in rows:
            seed = "ab".index(row["run"]) + (10 if row["kind"] == "evaluation" else 0)
            expected = value(figure_name, row["step"], "ab".index(row["run"]) if seed < 10 else 10)
            if seed in (0, 1):
                assert row["value"] == pytest.approx(expected)


def test_training_and_each_evaluation_cache_are_lines_of_their_own(tmp_path):
    make_run(tmp_path / "a", evaluations=("dev", "dev_hard"))
    (run,) = gather(open_runs([tmp_path / "a"]))
    assert [one.kind for one in run.lines("loss")] == ["training", "evaluation dev", "evaluation dev_hard"]
    assert "loss" in run.figures
    assert not any(name.startswith(("eval_", "hard_")) for name in run.figures)
    section = curves_section([run])
    assert len(section.charts) == len(FIGURES) + 1
    dashes = section.charts["curve-loss"]["layer"][0]["encoding"]["strokeDash"]["scale"]
    assert len({tuple(one) for one in dashes["range"]}) == len(dashes["domain"]) == 3


def test_figures_of_an_objective_are_drawn_too(tmp_path):
    folder = make_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "loss": 1.0, "plugin/own": 2.0}\n{"step": 41, "train_runtime": 9.0}\n')
    known = known_figures(gather(open_runs([folder])))
    assert known[:2] == ["loss", "rewards/accuracies"]
    assert known[-1] == "plugin/own"
    assert "train_runtime" not in known


# What is said of runs


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for lab in ("x", "y"):
        make_run(tmp_path / lab / "tdpo2")
    make_run(tmp_path / "other")
    paths = [tmp_path / "x" / "tdpo2", tmp_path / "y" / "tdpo2", tmp_path / "other"]
    assert [run.label for run in gather(open_runs(paths))] == ["x/tdpo2", "y/tdpo2", "other"]


def test_runs_of_different_caches_are_said_to_be(tmp_path):
    for name, cache in (("a", "one"), ("b", "one"), ("c", "two")):
        make_run(tmp_path / name, record=identity(cache))
    same = gather(open_runs([tmp_path / "a", tmp_path / "b"]))
    assert cache_notes(same) == []
    different = gather(open_runs([tmp_path / name for name in "abc"]))
    (note,) = cache_notes(different)
    assert "different caches" in note
    assert f"a, b ({different[0].cache_short}); c ({different[2].cache_short})" in note


def test_a_run_whose_cache_was_not_recorded_is_named(two_runs):
    (note,) = cache_notes(two_runs)
    assert note.endswith("cannot be compared: a, b.")


def test_a_cut_metrics_file_is_read_as_far_as_it_goes_and_named(tmp_path):
    folder = make_run(tmp_path / "a")
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-15])
    lines = len(whole.splitlines())
    written = tdpo.report(folder, out=tmp_path / "r.html", pairs=0, quiet=True)
    assert f"{path} is cut short: its last line, {lines}, is no whole JSON object" in written.notes
    text = Page(written.page).text
    assert f"{path} is cut short" in text
    assert RunFolder.open(folder).steps == 40


def test_notes_go_to_stderr_too(tmp_path, capfd):
    folder = make_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')
    tdpo.report(folder, out=tmp_path / "r.html", pairs=0)
    said = capfd.readouterr().err.splitlines()
    assert any("is cut short" in one for one in said)


def test_the_command_that_made_a_run_is_there_to_be_copied(tmp_path):
    folder = make_run(tmp_path / "a", options={"beta": 0.25})
    written = tdpo.report(folder, out=tmp_path / "r.html", pairs=0, quiet=True)
    (command,) = re.findall(r"tdpo fit [^\n]+?(?= folder)", Page(written.page).text)
    assert {"--plugin tdpo2", "--eval-cache heldout", "--set beta=0.25"} <= set(
        re.findall(r"--\S+ \S+", command)
    )


# Reward against KL


def evaluated(folder, **figures):
    (folder / "eval").mkdir()
    entries = {
        name: {"value": middle, "low": middle - 1, "high": middle + 1} for name, middle in figures.items()
    }
    document = {"evaluations": [{"run": folder.name, "cache": "", "figures": entries}]}
    (folder / "eval" / "eval.json").write_text(json.dumps(document))


def test_rewards_of_samples_are_drawn_where_they_were_measured(tmp_path):
    for name, reward in (("a", 3.0), ("b", 4.0)):
        folder = make_run(tmp_path / name)
        evaluated(folder, **{"samples/reward": reward, "samples/kl": 7.0, "samples/reward/reference": 2.5})
    section = frontier_section(gather(open_runs([tmp_path / "a", tmp_path / "b"])))
    spec = section.charts["frontier-samples"]
    assert [(row["run"], row["kl"], row["reward"]) for row in spec["data"]["values"]] == [
        ("a", 7.0, 3.0),
        ("b", 7.0, 4.0),
    ]
    assert [(row["low"], row["high"]) for row in spec["data"]["values"]] == [(2.0, 4.0), (3.0, 5.0)]
    assert "--generate" not in section.html.split("</div>")[-1]


def test_margins_stand_in_for_rewards_and_are_not_called_so(two_runs):
    section = frontier_section(two_runs)
    assert list(section.charts) == ["frontier-pairs"]
    rows = section.charts["frontier-pairs"]["data"]["values"]
    assert len(rows) == 10
    for row in rows:
        kl = (value("kl/chosen", row["step"], 10) + value("kl/rejected", row["step"], 10)) / 2
        if row["run"] == "a":
            assert row["kl"] == pytest.approx(kl)
            assert row["margin"] == pytest.approx(value("rewards/margins", row["step"], 10))
    assert {row["step"] for row in rows if row["kept"]} == {40}
    assert "Not a reward" in section.html
    assert "tdpo eval" in section.html


def test_without_a_held_out_kl_it_is_said_how_to_get_one(tmp_path):
    make_run(tmp_path / "a", figures=("loss", "rewards/margins"))
    section = frontier_section(gather(open_runs([tmp_path / "a"])))
    assert section.charts == {}
    assert "train with --eval-cache" in section.html


# Pairs


def figures_of(margins, number=0, ratios=None):
    margins = np.asarray(margins, np.float64)
    chosen, rejected = ratios if ratios is not None else (margins, 0 * margins)
    columns = {
        "rewards_margins": margins,
        "log_ratios_chosen": np.asarray(chosen, np.float64),
        "log_ratios_rejected": np.asarray(rejected, np.float64),
        "chosen_tokens": np.full(len(margins), 3.0),
        "rejected_tokens": np.full(len(margins), 4.0),
    }
    return PairFigures(number, f"run {number}", "", [f"{at:032x}" for at in range(len(margins))], columns)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=2, max_size=30))
def test_percentiles_are_shares_of_smaller_values(values):
    (found,) = percentiles(np.array([values]))
    for at, one in enumerate(values):
        smaller = sum(other < one for other in values)
        equal = sum(other == one for other in values) - 1
        assert found[at] == pytest.approx(100 * (smaller + equal / 2) / (len(values) - 1))


def test_the_hardest_pairs_of_a_run_are_those_of_the_lowest_margin():
    margins = np.random.default_rng(0).normal(size=50)
    hardest, _ = rank([figures_of(margins)])
    assert [int(pair, 16) for pair, _ in hardest.pairs] == np.argsort(margins)[:10].tolist()


def test_no_run_outweighs_another_by_the_size_of_its_margins():
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=50), rng.normal(size=50)
    ranked = rank([figures_of(small), figures_of(large, 1)])
    scaled = rank([figures_of(small), figures_of(1000 * large, 1)])
    for one, other in zip(ranked, scaled, strict=True):
        assert [pair for pair, _ in one.pairs] == [pair for pair, _ in other.pairs]


def test_the_noisiest_pairs_of_several_runs_are_those_they_disagree_on():
    margins = np.linspace(-1, 1, 50)
    other = margins.copy()
    other[[3, 46]] = other[[46, 3]]
    _, noisiest = rank([figures_of(margins), figures_of(other, 1)], count=2)
    assert {int(pair, 16) for pair, _ in noisiest.pairs} == {3, 46}


def test_the_noisiest_pairs_of_one_run_moved_most_on_both_sides_alike():
    chosen = np.array([1.0, -5.0, 6.0, -4.0])
    rejected = np.array([1.5, -4.5, -6.0, 0.0])
    _, noisiest = rank([figures_of(chosen - rejected, ratios=(chosen, rejected))])
    assert [(int(pair, 16), measure) for pair, measure in noisiest.pairs[:2]] == [(1, 4.5), (0, 1.0)]


def test_only_pairs_that_all_runs_have_are_ranked():
    a, b = figures_of([1.0, 2.0, 3.0]), figures_of([1.0, 2.0], 1)
    hardest, _ = rank([a, b])
    assert {pair for pair, _ in hardest.pairs} == set(b.ids)
    assert rank([a, PairFigures(1, "b", "", ["ff"], {k: v[:1] for k, v in a.columns.items()})]) == []


@settings(deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=200), min_size=1, max_size=3),
)
def test_a_histogram_counts_every_pair_once(margins):
    figures = [figures_of(values, at) for at, values in enumerate(margins)]
    rows = histogram(figures, "rewards_margins")["data"]["values"]
    for one, values in zip(figures, margins, strict=True):
        own = [row for row in rows if row["run"] == one.label]
        assert sum(row.get("pairs", 0) for row in own) == len(values)
        assert sum(row["share"] for row in own) == pytest.approx(1)


def test_prompts_that_hold_markup_are_text():
    figures = figures_of([-1.0, 2.0])
    prompts = dict.fromkeys(figures.ids, NASTY)
    section = pairs_section([], Looked(NASTY, None, [figures], [NASTY]), rank([figures]), prompts)
    found = Page(str(section.html))
    assert found.text.count(NASTY) == 1 + 2 * 2
    assert not {"script", "img"} & {tag for tag, _ in found.elements}
    links = [a["href"] for tag, a in found.elements if tag == "a"]
    assert links[0] == f"#tokens-pair-{figures.ids[0]}"


def a_fitted_run(folder, cache, **options):
    tdpo.fit(
        "tdpo2", cache, eval_cache=[str(cache)], output=str(folder), max_steps=3, batch_size=8, quiet=True,
        learning_rate=1e-2, **options
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, cache):
    """Two runs with their policies."""
    folder = tmp_path_factory.mktemp("fitted")
    return [a_fitted_run(folder / f"seed{seed}", cache, seed=seed) for seed in range(2)]


def rows_of(html, id):
    body = html.split(f'<table id="{id}">')[1].split("</table>")[0]
    return re.findall(r"<tr>(.*?)</tr>", body, flags=re.DOTALL)[1:]


def test_pairs_are_scored_where_nothing_evaluated_them(tmp_path, fitted, cache):
    written = tdpo.report(*fitted, out=tmp_path / "r.html", pairs=12, png=tmp_path / "png", quiet=True)
    assert written.notes == []
    html = written.page.read_text()
    assert "12 of 48 pairs" in Page(written.page).text
    assert not (fitted[0] / "eval").exists()
    assert {"pairs-rewards_margins.png", "pairs-log_ratios_chosen.png"} <= {p.name for p in written.pictures}
    assert 'id="tokens"' in html

    truth = [
        tdpo.evaluate(run, cache=[str(cache)], bootstrap=0, out=tmp_path / run.name, quiet=True)
        for run in fitted
    ]
    tables = [one.evaluated[0].table for one in truth]
    margins = {
        str(pair): values
        for pair, *values in zip(tables[0].ids, *(t.figures["rewards/margins"] for t in tables), strict=True)
    }
    rows = rows_of(html, "pairs-hardest")
    assert len(rows) == 10
    for row in rows:
        by = re.findall(r'data-by="([^"]*)"', row)
        assert [float(one) for one in by[2:4]] == pytest.approx(margins[by[0]], rel=1e-4)


def test_what_tdpo_eval_wrote_is_used(tmp_path, fitted, cache):
    run = shutil.copytree(fitted[0], tmp_path / "run")
    found = tdpo.evaluate(run, bootstrap=0, quiet=True)
    written = tdpo.report(run, out=tmp_path / "r.html", pairs=0, quiet=True)
    html = written.page.read_text()
    assert "48 of 48 pairs" in Page(written.page).text
    lowest = np.sort(found.evaluated[0].table.figures["rewards/margins"])[:10]
    by = [float(re.findall(r'data-by="([^"]*)"', row)[1]) for row in rows_of(html, "pairs-hardest")]
    assert by == pytest.approx(lowest)


def test_a_run_whose_policy_is_gone_keeps_the_rest_of_its_report(tmp_path, fitted):
    run = shutil.copytree(fitted[0], tmp_path / "run")
    (run / "model.safetensors").unlink()
    written = tdpo.report(run, out=tmp_path / "r.html", pairs=12, quiet=True)
    (note,) = written.notes
    assert note.startswith("run: its pairs could not be scored")
    assert 'id="curve' not in note
    assert "its pairs could not be scored" in Page(written.page).text
    assert 'id="tokens"' not in written.page.read_text()


def test_without_its_cache_it_is_said_how_to_get_the_pairs(tmp_path, fitted):
    run = shutil.copytree(fitted[0], tmp_path / "run")
    text = (run / "tdpo.yaml").read_text()
    (run / "tdpo.yaml").write_text(re.sub(r"(eval_cache|cache): .*", r"\1: gone", text))
    written = tdpo.report(run, out=tmp_path / "r.html", quiet=True)
    assert "--cache DIR" in Page(written.page).text
    assert any("gone" in note for note in written.notes)


# The page


class Page(HTMLParser):
    """What a browser would take for text, for elements and for scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.scripts, self._said, self._in = [], [], [], []
        self.feed(path.read_text(encoding="utf-8") if hasattr(path, "read_text") else path)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._in.append(tag)
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag in ("script", "style") and self._in:
            self._in.pop()

    def handle_data(self, data):
        if self._in:
            self.scripts[-1] += data
        else:
            self._said.append(data)

    @property
    def text(self):
        return " ".join("".join(self._said).split())


NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def test_markup_in_names_and_options_is_text(tmp_path):
    folder = make_run(tmp_path / NASTY.replace("/", "∕"), options={"beta": 0.1, "note": NASTY})
    plain = make_run(tmp_path / "plain")
    nasty = Page(tdpo.report(folder, plain, out=tmp_path / "r.html", pairs=0, title=NASTY, quiet=True).page)
    usual = Page(
        tdpo.report(make_run(tmp_path / "n"), plain, out=tmp_path / "s.html", pairs=0, quiet=True).page
    )
    assert Counter(tag for tag, _ in nasty.elements) == Counter(tag for tag, _ in usual.elements)
    assert NASTY in nasty.text
    assert not any(name.startswith("on") for _, attributes in nasty.elements for name in attributes)


@given(
    st.recursive(
        st.text() | st.floats() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_data_in_a_script_cannot_end_it(value):
    text = str(as_script_json({"value": value, "also": "</script><!-- \u2028"}))
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode("utf-8")

    def same(a, b):
        if isinstance(a, float):
            return b is None if not math.isfinite(a) else a == b
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        return a == b

    assert same(value, json.loads(text)["value"])


def test_a_script_says_the_same_when_it_is_made_safe():
    safe = str(as_script_text("x = '</SCRIPT> <!-- '; y = a < b;"))
    assert safe == r"x = '<\/SCRIPT> \x3c!-- '; y = a < b;"


def test_rows_are_packed_into_columns():
    rows = [{"x": 1, "run": "a", "y": 1 / 3}, {"x": 2, "run": "b"}, {"x": 3, "run": "a", "y": math.nan}]
    spec = packed({"layer": [{"data": {"values": rows}}], "data": {"values": []}})
    columns = spec["layer"][0]["data"]["columns"]
    assert columns["x"] == [1, 2, 3]
    assert columns["run"] == {"of": ["a", "b"], "at": [0, 1, 0]}
    assert columns["y"][:2] == [0.333333, None]
    assert spec["data"] == {"values": []}


def test_a_page_needs_nothing_but_itself(tmp_path, two_runs):
    written = tdpo.report(*(run.run.path for run in two_runs), out=tmp_path / "r.html", pairs=0, quiet=True)
    found = Page(written.page)
    assert not [
        a
        for tag, a in found.elements
        if tag in ("link", "img", "iframe") and "data:" not in a.get("href", "")
    ]
    assert not [a for tag, a in found.elements if tag == "script" and "src" in a]
    assert not any(
        "@import" in one or "url(" in one for one in found.scripts if one.lstrip().startswith(":root")
    )
    assert written.page.stat().st_size < 5_000_000


def test_headings_and_landmarks_are_in_order(tmp_path, two_runs):
    written = tdpo.report(*(run.run.path for run in two_runs), out=tmp_path / "r.html", pairs=0, quiet=True)
    elements = Page(written.page).elements
    tags = [tag for tag, _ in elements]
    assert tags.count("h1") == tags.count("main") == tags.count("header") == tags.count("nav") == 1
    levels = [int(tag[1]) for tag in tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in elements if tag == "a"} <= set(ids)
    html = dict(elements[0][1]) if elements[0][0] == "html" else {}
    assert html.get("lang") == "en"


def test_a_chart_without_a_place_is_a_mistake():
    with pytest.raises(ValueError, match="no figure"):
        page("t", [Section("a", "A", Markup(), {"chart": {}})])
    with pytest.raises(ValueError, match="two charts"):
        page("t", [Section(one, one, figure("chart"), {"chart": {}}) for one in "ab"])
    with pytest.raises(ValueError, match="two sections"):
        page("t", [Section("a", "A", Markup()), Section("a", "B", Markup())])


def test_a_page_without_charts_brings_no_library(tmp_path):
    path = write_page(tmp_path / "deep" / "page.html", "t", [Section("a", "A", Markup("<p>text</p>"))])
    assert path.stat().st_size < 40_000


def test_cells_are_escaped_and_sorted_by_their_values():
    found = Page(
        str(table([Column("name"), Column("n", numeric=True)], [["<b>", number(1234.5678)], ["x", None]]))
    )
    assert [a["data-by"] for tag, a in found.elements if "data-by" in a] == ["<b>", "1234.5678", "x"]
    assert "<b>" in found.text
    assert "1,235" in found.text
    assert [tag for tag, _ in found.elements].count("button") == 2


# Pictures


def test_pictures_are_of_the_asked_kind(tmp_path, two_runs):
    folders = [run.run.path for run in two_runs]
    written = tdpo.report(
        *folders, out=tmp_path / "r.html", png=tmp_path / "png", metric=["loss"], pairs=0, scale=2, quiet=True
    )
    assert sorted(path.name for path in written.pictures) == ["curve-loss.png", "frontier-pairs.png"]
    for path in written.pictures:
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content[16:20]) >= 2 * 420
    pdf = tdpo.report(
        *folders,
        out=tmp_path / "r.html",
        png=tmp_path / "pdf",
        format="pdf",
        metric=["loss"],
        pairs=0,
        quiet=True,
    )
    assert all(path.read_bytes().startswith(b"%PDF") for path in pdf.pictures)


def test_pictures_have_a_legend_and_colours_of_paper(two_runs):
    curve = Curve("kl/margin", [one for run in two_runs for one in run.lines("kl/margin")])
    drawn = picture(curve_spec(curve, own_legend=True), "svg").decode()
    assert "var(" not in drawn
    assert PAPER["--series-1"] in drawn
    for text in ("a", "b", "training", "evaluation", "Sequential KL, rejected − chosen (nats)"):
        assert f">{text}</text>" in drawn


def test_help_is_said_without_torch():
    code = (
        "import sys; from tdpo.core.cli import main\n"
        "try: main(['report', '--help'])\n"
        "finally: assert not {'torch', 'transformers', 'vl_convert'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "--png" in done.stdout
    assert "AssertionError" not in done.stderr
