"""The report's page in a browser: what it draws, asks for, says, and how it is moved about in."""

import pytest
from report_runs import FIGURES, make_run, value

import tdpo
from tdpo.core.report.thinning import MOST_POINTS

NASTY = '<script>document.title="broken"</script><b>bold'
CHARTS = {f"curve-{name}" for name in (*FIGURES, "grad_norm")} | {"frontier-pairs"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Three runs, one of them under a name that is markup, of different lengths."""
    folder = tmp_path_factory.mktemp("runs")
    names = ("tdpo2", "dpo", NASTY.replace("/", "\N{DIVISION SLASH}"))
    runs = [
        make_run(folder / name, steps, seed=seed)
        for seed, (name, steps) in enumerate(zip(names, (40, 30, 20), strict=True))
    ]
    written = tdpo.report(*runs, out=folder / "report.html", pairs=0, quiet=True)
    return written.page


@pytest.fixture(scope="module")
def long_page(tmp_path_factory):
    """Five runs that logged each of 10,000 steps."""
    folder = tmp_path_factory.mktemp("long")
    runs = [make_run(folder / f"run{seed}", 10_000, evaluate=500, seed=seed) for seed in range(5)]
    return tdpo.report(*runs, out=folder / "report.html", pairs=0, quiet=True).page


def is_quiet(browser):
    return browser.errors() == [] and browser.requests() == [browser.url]


def middle_of(browser, chart, step):
    """Where the step is in the window, in the middle of the chart's height."""
    browser.run(
        "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})",
        place(chart),
    )
    return browser.run(
        """(() => {
          const [chart, step] = arguments;
          const view = tdpoViews[chart];
          const box = document.querySelector(`[data-chart="${chart}"] svg`).getBoundingClientRect();
          const [left, top] = view.origin();
          const padding = view.padding();
          const x = box.left + padding.left + left + view.scale("x")(step);
          return [x, box.top + padding.top + top + view.height() / 2];
        })()""",
        chart,
        step,
    )


def place(chart):
    return f'[data-chart="{chart}"]'


def tooltip(browser):
    """Key -> value of what is shown under the mouse."""
    return browser.run(
        """Object.fromEntries([...document.querySelectorAll("#vg-tooltip-element.visible tr")]
          .map((row) => [...row.cells].map((cell) => cell.textContent.replace(/:$/, ""))))"""
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_opens_without_an_error_or_a_request(browser, page, dark):
    browser.open(page, dark=dark)
    assert is_quiet(browser)
    assert browser.run("document.title") != "broken"


def test_every_chart_is_drawn_with_its_points(browser, page):
    browser.open(page)
    assert set(browser.run("Object.keys(tdpoViews)")) == CHARTS
    assert len(browser.find_all(".chart-view svg")) == len(CHARTS)
    training, evaluations = 40 + 30 + 20, 5 + 4 + 3
    for name in FIGURES:
        assert browser.points(f"curve-{name}")["source_0"] == training + evaluations
    assert browser.points("curve-grad_norm")["source_0"] == training
    assert browser.points("frontier-pairs")["source_0"] == evaluations
    lines = "[...document.querySelectorAll('[data-chart=\"curve-loss\"] .mark-line path')]"
    vertices = browser.run(f"{lines}.map((path) => path.getAttribute('d').split(/[ML]/).length - 1)")
    assert sorted(vertices) == [3, 4, 5, 20, 30, 40]


def test_the_mouse_shows_the_values_of_all_runs_at_a_step(browser, page):
    browser.open(page)
    browser.point(*middle_of(browser, "curve-kl/chosen", 10))
    shown = tooltip(browser)
    assert shown.pop("step") == "10"
    assert len(shown) == 6
    for seed, name in enumerate(("tdpo2", "dpo", NASTY.replace("/", "\N{DIVISION SLASH}"))):
        for kind, offset in (("training", seed), ("evaluation", seed + 10)):
            assert float(shown[f"{name} ({kind})"]) == pytest.approx(value("kl/chosen", 10, offset), rel=1e-4)
    browser.point(*middle_of(browser, "curve-kl/chosen", 37))
    shown = tooltip(browser)
    assert shown.keys() == {"step", "tdpo2 (training)"}
    assert float(shown["tdpo2 (training)"]) == pytest.approx(value("kl/chosen", 37), rel=1e-4)


def test_markup_in_a_name_is_shown_as_text(browser, page):
    browser.open(page)
    name = NASTY.replace("/", "\N{DIVISION SLASH}")
    assert browser.find("#runs-table tbody tr:nth-child(3) th").text == name
    assert browser.run("document.querySelectorAll('main b, main script').length") == 0


@pytest.mark.parametrize("width", [320, 400, 800, 1600])
def test_no_window_is_too_narrow(browser, page, width):
    browser.open(page, width=width)
    assert browser.overflows() <= 0
    charts = browser.run(
        "[...document.querySelectorAll('.chart-view svg')].map((svg) => svg.getBoundingClientRect().right)"
    )
    assert max(charts) <= width
    per_row = browser.run(
        "getComputedStyle(document.querySelector('.figures')).gridTemplateColumns.split(' ').length"
    )
    assert per_row == {320: 1, 400: 1, 800: 2, 1600: 3}[width]


def test_charts_follow_the_window(browser, page):
    browser.open(page, width=1200)
    wide = browser.run("document.querySelector('.chart-view svg').getBoundingClientRect().width")
    browser.size(400)
    browser.wait("new Promise((done) => setTimeout(done, 300))")
    assert browser.run("document.querySelector('.chart-view svg').getBoundingClientRect().width") < wide
    assert browser.overflows() <= 0


def colours(browser):
    return browser.run(
        """[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector('.mark-line path')).stroke,
            getComputedStyle(document.querySelector('.role-axis-label text')).fill]"""
    )


def test_the_theme_is_the_systems_until_one_is_chosen(browser, page):
    light = colours(browser.open(page))
    dark = colours(browser.open(page, dark=True))
    assert all(one != other for one, other in zip(light, dark, strict=True))
    button = browser.find("#theme")
    button.click()
    assert colours(browser) == light
    button.click()
    assert colours(browser) == dark
    assert button.get_attribute("aria-label") == "Colour theme: dark"
    button.click()
    browser.open(page)
    assert colours(browser) == light


def luminance(colour):
    channels = [int(one) / 255 for one in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    a, b = sorted((luminance(one), luminance(other)))
    return (b + 0.05) / (a + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(browser, page, dark):
    """WCAG 2.2: 4.5 for text, 3 for what a picture consists of; here the first three of the palette."""
    browser.open(page, dark=dark)
    ground, ink, _, label = colours(browser)
    assert contrast(ground, ink) >= 7
    assert contrast(ground, label) >= 4.5
    lines = browser.run(
        "[...document.querySelectorAll('.mark-line path')].map((line) => getComputedStyle(line).stroke)"
    )
    assert all(contrast(ground, one) >= 3 for one in lines)


def test_the_keyboard_reaches_everything(browser, page):
    browser.open(page)
    browser.press("TAB")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("ENTER")
    assert browser.run("document.activeElement.id") == "content"
    browser.run("document.body.focus()")
    reached = set()
    for _ in range(60):
        browser.press("TAB")
        reached.add(
            browser.run(
                "(document.activeElement.id || document.activeElement.textContent.trim() || "
                "document.activeElement.dataset.hides)"
            )
        )
        outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or browser.run("document.activeElement === document.body")
    summaries = {one.text for one in browser.find_all("summary")}
    assert summaries <= reached


def test_a_heading_sorts_its_table(browser, page):
    browser.open(page)

    def column(number):
        return [one.text for one in browser.find_all(f"#runs-table tbody tr > :nth-child({number})")]

    button = browser.find("#runs-table thead th:nth-child(6) button")
    assert button.text.strip() == "steps"
    button.send_keys("\ue007")
    assert column(6) == ["40", "30", "20"]
    assert browser.find("#runs-table th[aria-sort]").get_attribute("aria-sort") == "descending"
    button.send_keys("\ue007")
    assert column(6) == ["20", "30", "40"]
    browser.find("#runs-table thead th:nth-child(1) button").click()
    assert column(1)[1:] == ["dpo", "tdpo2"]
    assert len(browser.find_all("#runs-table th[aria-sort]")) == 1


def test_a_run_can_be_hidden_in_all_charts(browser, page):
    browser.open(page)
    browser.find('input[data-hides="dpo"]').click()
    browser.wait("Promise.all(Object.values(tdpoViews).map((view) => view.runAsync()))")
    for chart in ("curve-loss", "curve-kl/margin", "frontier-pairs"):
        assert "dpo" not in browser.run("tdpoViews[arguments[0]].data('data_0').map((row) => row.run)", chart)
        assert "tdpo2" in browser.run("tdpoViews[arguments[0]].data('data_0').map((row) => row.run)", chart)
    browser.find('input[data-hides="dpo"]').click()
    browser.wait("Promise.all(Object.values(tdpoViews).map((view) => view.runAsync()))")
    assert "dpo" in browser.run("tdpoViews['curve-loss'].data('data_0').map((row) => row.run)")


def test_charts_are_described_in_words(browser, page):
    browser.open(page)
    labels = browser.run(
        "[...document.querySelectorAll('.chart-view svg')].map((svg) => svg.getAttribute('aria-label'))"
    )
    assert len(labels) == len(CHARTS)
    assert any(one.startswith("Loss over steps. Last values: tdpo2 (training)") for one in labels)


def test_the_page_prints_in_light_and_whole(browser, page, tmp_path):
    browser.open(page, dark=True)
    browser.pdf(tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") >= 2
    browser.cdp("Emulation.setEmulatedMedia", media="print", features=[])
    assert luminance(colours(browser)[0]) > 0.95 or colours(browser)[0] == "rgba(0, 0, 0, 0)"
    assert luminance(colours(browser)[1]) < 0.05
    assert not browser.find("#theme").is_displayed()
    assert not browser.find("nav").is_displayed()


def test_long_runs_are_drawn_with_few_points(browser, long_page):
    assert long_page.stat().st_size < 5_000_000
    browser.open(long_page)
    assert is_quiet(browser)
    for name in FIGURES:
        rows = browser.points(f"curve-{name}")["source_0"]
        assert 5 * (MOST_POINTS - 50 + 21) <= rows <= 5 * (MOST_POINTS + 21)
    assert browser.run("document.querySelectorAll('*').length") < 40_000
    browser.point(*middle_of(browser, "curve-loss", 5000))
    shown = tooltip(browser)
    first, last = (int(one.replace(",", "")) for one in shown.pop("step").split("\N{EN DASH}"))
    assert first <= 5000 <= last
    assert last - first + 1 == -(-10_000 // (MOST_POINTS - 1))
    assert len(shown) in (5, 10)
    for seed in range(5):
        mean = sum(value("loss", step, seed) for step in range(first, last + 1)) / (last - first + 1)
        assert float(shown[f"run{seed} (training)"]) == pytest.approx(mean, rel=1e-4)
