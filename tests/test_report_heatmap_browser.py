"""Token heatmaps as a browser shows them: what the data says is text, what is pointed at is told."""

import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer, sentence

import tdpo
from tdpo.cache.pairs import SIDES, Pair
from tdpo.core.report.alternatives import Alternatives
from tdpo.core.report.colours import contrast
from tdpo.core.report.heatmap import heatmap_section
from tdpo.core.report.heatmap_data import Shown
from tdpo.core.report.page import write_page
from tdpo.core.report.token_scores import RunTokens, TokenPair, TokenSide, score_tokens
from tdpo.core.runs.folder import RunFolder

MARKUP = (
    '<script>window.ran = 1; alert(1)</script><img src=x onerror="window.ran = 2">'
    "</pre></script><b onmouseover='window.ran = 3'>&amp; \N{CLAPPER BOARD} {{ 7 * 7 }} ${window.ran = 4}"
    "\n\n  end"
)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Two runs over pairs whose prompts and completions hold markup."""
    folder = tmp_path_factory.mktemp("heatmap")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), max_position_embeddings=512).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(6):
            markup = MARKUP if number == 0 else ""
            row = {
                "prompt": f"{markup}{sentence(rng, 4)}",
                "chosen": f" {sentence(rng, 6)} {markup}",
                "rejected": f" {sentence(rng, 12)}",
            }
            file.write(json.dumps(row) + "\n")
    tdpo.build_cache(folder / "model", folder / "pairs.jsonl", folder / "cache", quiet=True)
    reader = tdpo.open_cache(folder / "cache")
    runs = []
    for plugin in ("dpo", "sft"):
        output = folder / "runs" / plugin
        tdpo.fit(plugin, folder / "cache", output=str(output), max_steps=4, learning_rate=3e-3, quiet=True)
        runs.append(score_tokens(RunFolder.open(output), reader, range(6)))
    return [replace(runs[0], name="<i>dpo</i>"), runs[1]]


@pytest.fixture(scope="module")
def page(scored, tmp_path_factory):
    return _write(tmp_path_factory.mktemp("page") / "page.html", scored)


@pytest.fixture(scope="module")
def long_page(tmp_path_factory):
    """A pair whose sides have 4,000 tokens."""
    rng = np.random.default_rng(0)
    words = {number: f" word{number}" for number in range(50)} | {50: ".\n"}

    def side(ids):
        count = len(ids)
        values = {name: rng.normal(size=count).astype(np.float32) for name in ("log_ratio", "reward")}
        positive = {
            name: rng.random(count).astype(np.float32) for name in ("forward_kl", "entropy", "ref_entropy")
        }
        ref_logp = -rng.random(count).astype(np.float32)
        logp = torch.from_numpy(rng.dirichlet(np.ones(9), count)[:, :8]).log()
        others = Alternatives(torch.from_numpy(rng.integers(0, 51, (count, 8))), logp, logp.flip(-1))
        values["reward"] = np.float32(0.1) * values["log_ratio"]
        return TokenSide(
            ids, [words[i] for i in ids], ref_logp + values["log_ratio"], ref_logp, token_weight=None,
            alternatives=others, **values, **positive,
        )  # fmt: skip

    # One side has paragraphs, the other has none.
    chosen, rejected = rng.integers(0, 51, 4000), rng.integers(0, 50, 4000)
    pair = Pair.make(0, [1, 2], chosen, rejected)
    one = TokenPair(pair, "a prompt", side(pair.chosen_ids), side(pair.rejected_ids))
    run = RunTokens("dpo", 0.1, False, [one], words, frozenset())
    return one, _write(tmp_path_factory.mktemp("long") / "long.html", [run])


def _write(path, runs):
    shown = [
        Shown(row, one.pair.pair_id, "hardest" if row % 2 else "random")
        for row, one in enumerate(runs[0].pairs)
    ]
    return write_page(path, "Report", [heatmap_section(shown, runs)])


def number(text):
    return float(text.removeprefix("< ").replace("\N{MINUS SIGN}", "-").split()[0])


def values(browser):
    """What the panel tells: label -> [of the reference, of the policy]."""
    cells = browser.run("[...document.querySelectorAll('.heat-values > *')].map((one) => one.textContent)")
    return {cells[at]: cells[at + 1 : at + 3] for at in range(0, len(cells), 3)}


def span(browser, side, at):
    return browser.run(f"document.querySelectorAll('[data-side={side}] .t')[{at}]")


def count(browser, side):
    return browser.run(f"document.querySelectorAll('[data-side={side}] .t').length")


def classes(browser, side):
    return browser.run(f"[...document.querySelectorAll('[data-side={side}] .t')].map((one) => one.className)")


def choose(browser, label):
    browser.run(
        """[...document.querySelectorAll('.heat label')]
          .find((one) => one.textContent === arguments[0]).click()""",
        label,
    )


def point_at(browser, side, at):
    token = span(browser, side, at)
    # Again where what came into sight was not as high as was guessed.
    for _ in range(2):
        browser.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", token)
        browser.wait("0")
    x, y = browser.run(
        """((box) => [box.x + box.width / 2, box.y + box.height / 2])(arguments[0].getClientRects()[0])""",
        token,
    )
    browser.point(x, y)


def click(browser, side, at):
    point_at(browser, side, at)
    browser.run("arguments[0].click()", span(browser, side, at))


def colours(browser, selector):
    """Colour of the text of elements, and of what is behind it."""
    found = browser.run(
        """[...document.querySelectorAll(arguments[0])].map((one) => {
          const style = getComputedStyle(one);
          return [style.color, style.backgroundColor];
        })""",
        selector,
    )
    return [[_hex(ink), _hex(ground)] for ink, ground in found]


def _hex(colour):
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def test_markup_in_the_data_is_shown_as_text_and_nothing_of_it_runs(browser, page, scored):
    browser.open(page)
    for side in SIDES:
        text = browser.run(f"document.querySelector('[data-side={side}] .heat-text').textContent")
        assert text == "".join(scored[0].pairs[0].side(side).pieces)
    assert MARKUP in browser.run("document.querySelector('[data-side=chosen] .heat-text').textContent")
    assert browser.run("document.querySelector('.heat-prompt pre').textContent") == scored[0].pairs[0].prompt
    for at in range(6, 40, 4):
        point_at(browser, "chosen", at)
    assert (
        browser.run(
            "document.querySelectorAll('main img, main script, main b[onmouseover], main i > *').length"
        )
        == 0
    )
    assert browser.run("window.ran === undefined")
    assert "<i>dpo</i>" in browser.find(".heat-runs").text
    assert browser.errors() == []
    assert browser.requests() == [browser.url]


def test_pointing_at_a_token_tells_its_values_and_alternatives(browser, page, scored):
    browser.open(page)
    for side, at in (("chosen", 3), ("rejected", 7)):
        one = scored[0].pairs[0].side(side)
        point_at(browser, side, at)
        assert browser.find(".heat-token").text.endswith(f"{side}, token {at + 1} of {len(one.ids)}")
        told = values(browser)
        expected = {
            "log-prob": (one.ref_logp, one.logp),
            "entropy": (one.ref_entropy, one.entropy),
            "log-ratio": (None, one.log_ratio),
            "implicit reward": (None, one.reward),
            "forward KL": (None, one.forward_kl),
        }
        assert set(told) - {""} == set(expected)
        for label, (reference, policy) in expected.items():
            if reference is not None:
                assert number(told[label][0]) == pytest.approx(reference[at], rel=1e-2, abs=2e-4)
            assert number(told[label][1]) == pytest.approx(policy[at], rel=1e-2, abs=3e-4)
        shares = [number(part.text) for part in browser.find_all(".heat-others > .share:not(.head)")]
        names = [
            part.text.removeprefix("\N{BLACK RIGHT-POINTING SMALL TRIANGLE}")
            for part in browser.find_all(".heat-others > .name")
        ]
        others = one.alternatives
        ref_p = others.ref_logp[at].exp()
        kept = int((ref_p >= 1e-3).sum())
        texts = [scored[0].names[int(index)] for index in others.ids[at][:kept]]
        assert len(names) > kept
        for name, text in zip(names, texts, strict=False):
            assert name == text.replace(" ", "\N{OPEN BOX}") if text.isprintable() else name.startswith("<U+")
        np.testing.assert_allclose(shares[0 : 2 * kept : 2], 100 * ref_p[:kept], atol=0.06)
        np.testing.assert_allclose(shares[1 : 2 * kept : 2], 100 * others.logp[at].exp()[:kept], atol=0.06)
        assert names[-1] == "all others"
        assert sum(shares[0::2]) == pytest.approx(100, abs=0.5)
        assert sum(shares[1::2]) == pytest.approx(100, abs=0.5)
        assert len(browser.find_all(".heat-others > .name.here")) == 1


def test_the_token_that_was_chosen_last_is_told_again_when_the_pointer_leaves(browser, page):
    browser.open(page)
    click(browser, "chosen", 5)
    point_at(browser, "chosen", 2)
    assert "token 3 of" in browser.find(".heat-token").text
    browser.point(2, 2)
    assert "token 6 of" in browser.find(".heat-token").text


def test_another_quantity_has_other_colours_and_another_legend(browser, page, scored):
    browser.open(page)
    one = scored[0].pairs[0].chosen
    names = classes(browser, "chosen")
    limit = max(float(part) for part in re.findall(r"[\d.]+", browser.find(".heat-ticks").text))
    steps = np.rint(one.reward.clip(-limit, limit) / limit * 8).astype(int)
    expected = ["z" if s == 0 else f"n{-s}" if s < 0 else f"p{s}" for s in steps]
    shown = [re.search(r"\b(z|[nps]\d+)\b", name)[1] for name in names]
    # Where the page's three digits fall to the other side of a step's edge.
    assert sum(a != b for a, b in zip(shown, expected, strict=True)) <= 1
    assert "log ref" in browser.find(".heat-name").text
    choose(browser, "forward KL")
    names = classes(browser, "chosen")
    assert all(re.search(r"\bs\d+\b", name) for name in names)
    assert (
        browser.find(".heat-name").text
        == "forward KL a token = KL(ref \N{DOUBLE VERTICAL LINE} \N{GREEK SMALL LETTER PI}), an estimate"
    )
    assert len(browser.find_all(".heat-bar > span")) == 11
    total = number(re.search(r"sum (\S+) nats", browser.find("[data-side=chosen] .heat-sum").text)[1])
    assert total == pytest.approx(float(one.forward_kl.sum()), rel=1e-2)
    assert "now" in browser.run("[...document.querySelectorAll('.heat-values > dt')].at(-1).className")


def test_another_run_has_its_own_numbers_and_only_what_it_has(browser, page, scored):
    browser.open(page)
    margins = "[...document.querySelectorAll('.heat-margin')].map((one) => one.textContent)"
    expected = [float(one.chosen.reward.sum() - one.rejected.reward.sum()) for one in scored[0].pairs]
    np.testing.assert_allclose(
        [number(text) for text in browser.run(margins)], expected, rtol=1e-2, atol=1e-4
    )
    choose(browser, "sft")
    # sft has no beta, hence no implicit reward.
    assert browser.run("document.querySelector('.heat-quantities input').disabled")
    expected = [float(one.chosen.log_ratio.sum() - one.rejected.log_ratio.sum()) for one in scored[1].pairs]
    np.testing.assert_allclose(
        [number(text) for text in browser.run(margins)], expected, rtol=1e-2, atol=1e-4
    )
    assert "under sft" in browser.find(".heat-now").text
    assert browser.find(".heat-name").text.startswith("log-ratio")


def test_the_keyboard_goes_from_token_to_token_and_side_to_side(browser, page):
    browser.open(page, width=700)
    click(browser, "chosen", 0)

    def focus():
        return browser.run(
            "[document.activeElement.closest('.heat-side')?.dataset.side, document.activeElement.at]"
        )

    browser.press("ARROW_RIGHT", "ARROW_RIGHT")
    assert focus() == ["chosen", 2]
    assert "chosen, token 3" in browser.find(".heat-token").text
    browser.press("ARROW_LEFT")
    assert focus() == ["chosen", 1]
    browser.press("ARROW_DOWN")
    _, below = focus()
    box = "arguments[0].getClientRects()[0].top"
    assert browser.run(box, span(browser, "chosen", below)) > browser.run(box, span(browser, "chosen", 1))
    browser.press("ARROW_UP", "END")
    assert focus() == ["chosen", count(browser, "chosen") - 1]
    browser.press("ARROW_RIGHT", "TAB")
    assert focus() == ["rejected", 0]
    browser.press("ARROW_RIGHT")
    assert "rejected, token 2" in browser.find(".heat-token").text
    assert browser.run("document.querySelectorAll('.heat-text [tabindex=\"0\"]').length") == 2
    # Radio buttons take the arrows by themselves.
    browser.run("document.querySelector('.heat-list input').focus()")
    browser.press("ARROW_DOWN")
    assert browser.run("tdpo.heatmaps.tokens.now.pair") == 1


def test_a_pointer_that_rests_says_nothing_while_keys_move_the_page(browser, page):
    browser.open(page, width=400, height=500)
    click(browser, "chosen", 5)
    browser.press("END")
    last = count(browser, "chosen")
    browser.wait("new Promise((done) => setTimeout(done, 500))")
    assert f"token {last} of" in browser.find(".heat-token").text
    point_at(browser, "chosen", 1)
    assert "token 2 of" in browser.find(".heat-token").text


def test_a_link_shows_its_pair(browser, page, scored):
    wanted = scored[0].pairs[4]
    browser.open(page)
    browser.run(f"location.assign('#tokens-pair-{wanted.pair.pair_id}')")
    browser.wait("0")
    text = browser.run("document.querySelector('[data-side=rejected] .heat-text').textContent")
    assert text == "".join(wanted.rejected.pieces)
    assert "row 4" in browser.find(".heat-now").text


def test_running_sums_are_drawn_of_the_pair_and_run_at_hand(browser, page, scored):
    browser.open(page)
    for name, of in (("reward", "reward"), ("kl", "forward_kl")):
        rows = browser.run(f"tdpo.views['tokens-{name}'].data('sums')")
        for side in SIDES:
            sums = [row["sum"] for row in rows if row["side"] == side]
            expected = np.cumsum([0, *getattr(scored[0].pairs[0].side(side), of)])
            np.testing.assert_allclose(sums, expected, rtol=1e-3, atol=2e-3)
        assert len(browser.find_all(f"[data-chart='tokens-{name}'] svg .mark-line path")) == 2
    choose(browser, "sft")
    browser.wait("tdpo.views['tokens-kl'].runAsync()")
    rows = browser.run("tdpo.views['tokens-kl'].data('sums')")
    last = [row["sum"] for row in rows if row["side"] == "chosen"][-1]
    assert last == pytest.approx(float(scored[1].pairs[0].chosen.forward_kl.sum()), rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_colour(browser, page, dark):
    browser.open(page, dark=dark)
    seen = set()
    for quantity in ("implicit reward", "reference entropy"):
        choose(browser, quantity)
        for ink, ground in colours(browser, "[data-side=chosen] .t, .heat-bar > span"):
            assert contrast(ink, ground) >= 4.5
            seen.add(ground)
    assert len(seen) >= 20
    assert colours(browser, ".heat-legend .s0")[0][1] == ("#14171b" if dark else "#ffffff")


def test_sides_are_beside_each_other_where_there_is_room_and_nothing_sticks_out(browser, page):
    tops = "[...document.querySelectorAll('.heat-side')].map((one) => one.getBoundingClientRect().top)"
    browser.open(page, width=1400)
    assert len(set(browser.run(tops))) == 1
    assert browser.overflows() == 0
    browser.open(page, width=360)
    assert len(set(browser.run(tops))) == 2
    assert browser.overflows() == 0
    assert browser.errors() == []


def test_paper_shows_the_view_at_hand_without_its_controls(browser, page):
    browser.open(page, dark=True)
    choose(browser, "policy entropy")
    browser.cdp("Emulation.setEmulatedMedia", media="print", features=[])
    assert not browser.find(".heat-controls").is_displayed()
    assert not browser.find(".heat-pairs").is_displayed()
    assert browser.find(".heat-now").text.startswith("Policy entropy under <i>dpo</i>")
    assert colours(browser, ".heat-legend .s0")[0][1] == "#ffffff"
    assert browser.run("getComputedStyle(document.querySelector('.heat-text')).printColorAdjust") == "exact"


def test_completions_of_4000_tokens_can_be_looked_at(browser, long_page):
    one, path = long_page
    assert path.stat().st_size < 5_000_000
    browser.open(path)
    assert [count(browser, side) for side in SIDES] == [4000, 4000]
    assert browser.run("document.querySelectorAll('[data-side=chosen] .heat-block').length") > 10
    text = browser.run("document.querySelector('[data-side=chosen] .heat-text').textContent")
    assert text == "".join(one.chosen.pieces)
    click(browser, "rejected", 0)
    browser.press("END")
    assert "rejected, token 4,000 of 4,000" in browser.find(".heat-token").text
    point_at(browser, "chosen", 3900)
    assert "chosen, token 3,901 of 4,000" in browser.find(".heat-token").text
    assert number(values(browser)["log-ratio"][1]) == pytest.approx(
        one.chosen.log_ratio[3900], rel=1e-2, abs=1e-3
    )
    for label in ("forward KL", "log-ratio", "implicit reward"):
        choose(browser, label)
    assert any("p8" in name for name in classes(browser, "chosen"))
    rows = browser.run("tdpo.views['tokens-reward'].data('sums')")
    assert len(rows) < 2100
    assert rows[len(rows) // 2 - 1]["sum"] == pytest.approx(
        float(one.chosen.reward.sum()), rel=1e-2, abs=0.05
    )
    assert browser.errors() == []


def test_what_a_small_budget_leaves_out_is_said(browser, long_page, tmp_path):
    one, _ = long_page
    names = {number: f" word{number}" for number in range(50)} | {50: ".\n"}
    run = RunTokens("dpo", 0.1, True, [one], names, frozenset())
    section = heatmap_section([Shown(0, one.pair.pair_id, "random")], [run], budget=100_000)
    browser.open(write_page(tmp_path / "small.html", "Report", [section]))
    kept = count(browser, "chosen")
    assert 0 < kept < 4000
    assert (
        f"The last {4000 - kept:,} tokens of 4,000 are left out"
        in browser.find("[data-side=chosen] .heat-omitted").text
    )
    total = number(re.search(r"sum (\S+) nats", browser.find("[data-side=chosen] .heat-sum").text)[1])
    assert total == pytest.approx(float(one.chosen.reward.sum()), rel=1e-2, abs=1e-3)
