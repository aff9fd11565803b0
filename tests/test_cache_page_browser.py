"""The page of a cache in a browser: every chart is drawn, nothing is asked for, data stays text."""

import json

import pytest

import tdpo
from tdpo.core.report.cache_figures import cache_figures

pytest.importorskip("vl_convert")

EVIL = "<img src=x onerror=\"document.title='owned'\"></pre>"


@pytest.fixture(scope="module")
def evil(tmp_path_factory, reference):
    """A cache of pairs that are markup."""
    folder = tmp_path_factory.mktemp("evil")
    rows = [
        {"prompt": f"{EVIL} {number}", "chosen": f" good {EVIL}", "rejected": f" bad {'great ' * number}"}
        for number in range(30)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tdpo.build_cache(
        reference, folder / "pairs.jsonl", folder / "<b>cache", max_length=120, truncation="keep_start",
        max_skipped=1.0, quiet=True,
    )  # fmt: skip
    return folder / "<b>cache"


@pytest.fixture(scope="module")
def page(evil):
    """Its page."""
    return tdpo.cache_page(evil, evil.parent / "c.html", png=evil.parent / "png").page


def bars(spread):
    return len(spread.counts)


def test_every_chart_has_its_bins(browser, page, evil):
    browser.open(page)
    found = cache_figures(tdpo.open_cache(evil), text=False)
    expected = {f"length-{name}": bars(spread) for name, spread in found.summary.tokens.items()}
    expected |= {
        "entropy": bars(found.summary.entropy),
        "completion-entropy": bars(found.summary.completion_entropy),
        "tail-mass": bars(found.summary.tail_mass),
        "entries": bars(found.summary.entries),
        "dispersion": bars(found.dispersion.spread),
        "bytes": len(found.summary.column_bytes),
    }
    drawn = {
        name: browser.run(
            "document.querySelectorAll(`[data-chart='${arguments[0]}'] svg .mark-rect path`).length", name
        )
        for name in browser.run("Object.keys(tdpoViews)")
    }
    assert drawn == expected
    # The mean, and the quartiles.
    assert (
        browser.run(
            "document.querySelectorAll(\"[data-chart='dispersion'] svg .mark-rule.role-mark line\").length"
        )
        == 4
    )
    assert browser.errors() == []
    assert browser.requests() == [browser.url]


def test_markup_in_the_data_is_text(browser, page):
    browser.open(page)
    assert browser.run("document.title") == "Cache <b>cache"
    assert browser.run("document.querySelectorAll('main img, main script, h1 b').length") == 0
    assert EVIL in browser.find(".pair pre").text
    assert browser.run("document.querySelectorAll('.pair').length") == 6


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
def test_it_fits_narrow_and_wide_windows_light_and_dark(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert browser.overflows() <= 0
    for name in browser.run("Object.keys(tdpoViews)"):
        box = browser.run(
            "(() => { const box = document.querySelector(`[data-chart='${arguments[0]}'] svg`)"
            ".getBoundingClientRect(); return [box.left, box.right, box.height]; })()",
            name,
        )
        assert box[0] >= 0
        assert box[1] <= width
        assert box[2] > 80
    assert browser.errors() == []


def test_a_bar_tells_its_bin(browser, page, evil):
    browser.open(page)
    spread = cache_figures(tdpo.open_cache(evil), text=False).dispersion.spread
    highest = max(range(len(spread.counts)), key=spread.counts.__getitem__)
    x, y = browser.run(
        """(() => {
          const paths = document.querySelectorAll("[data-chart='dispersion'] svg .mark-rect path");
          const path = paths[arguments[0]];
          path.scrollIntoView({block: "center", behavior: "instant"});
          const box = path.getBoundingClientRect();
          return [box.left + box.width / 4, box.bottom - 2];
        })()""",
        highest,
    )
    browser.point(x, y)
    told = browser.find("#vg-tooltip-element").text.split()
    assert f"{spread.counts[highest]}" in told


def test_it_prints(browser, page, tmp_path):
    browser.open(page)
    browser.pdf(tmp_path / "c.pdf")
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
