"""What a run did to each token: scores, texts and alternatives, as tables and as a page's data."""

import json
import random
import re
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import make_model, make_tokenizer, sentence

import tdpo
from tdpo.cache.pairs import SIDES
from tdpo.core.errors import ConfigError
from tdpo.core.report.colours import colour_classes, contrast
from tdpo.core.report.heatmap import heatmap_section
from tdpo.core.report.heatmap_data import Shown, heatmap_data
from tdpo.core.report.pairs import Ranked, to_show
from tdpo.core.report.pieces import decode, special_ids, token_name, token_pieces
from tdpo.core.report.token_scores import score_tokens
from tdpo.core.report.tokens import as_table, default_cache, find_rows, write_tokens
from tdpo.core.runs.folder import RunFolder

EMOJI = "fine \N{FACE WITH TEARS OF JOY}\N{CLAPPER BOARD} caf\N{LATIN SMALL LETTER E WITH ACUTE}\n\n\tand"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, reference):
    """Data with characters of several tokens, and its cache, with the scores of a contrastive pair."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = random.Random(3)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(12):
            row = {
                "prompt": sentence(rng, 4),
                "chosen": f" {sentence(rng, 3)} {EMOJI if number % 3 == 0 else ''}",
                "rejected": f" {sentence(rng, 5)}",
            }
            file.write(json.dumps(row) + "\n")
    tdpo.build_cache(reference, folder / "pairs.jsonl", folder / "cache", quiet=True)
    for name, seed in (("positive", 5), ("negative", 6)):
        make_model(len(make_tokenizer()), seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    tdpo.add_statistics(
        folder / "cache",
        "contrast",
        positive=str(folder / "positive"),
        negative=str(folder / "negative"),
        quiet=True,
    )
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A few steps of TDPO2 under TIS weights."""
    tdpo.fit(
        "tdpo2", folder / "cache", weighting=["tis"], output=str(folder / "runs" / "tis"), max_steps=4,
        set={"beta": 0.3}, learning_rate=3e-3, quiet=True,
    )  # fmt: skip
    return RunFolder.open(folder / "runs" / "tis")


@pytest.fixture(scope="module")
def scored(run):
    return score_tokens(run, tdpo.open_cache(run.cache), range(12))


def plain_logits(path, prompt, completion):
    """The whole log-distributions [T, V], float64, of an ordinary forward pass."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path).double().eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt.tolist(), *completion.tolist()]])).logits
    return logits[0, len(prompt) - 1 : -1].log_softmax(-1).numpy()


def test_every_number_is_what_whole_distributions_give(scored, run, reference):
    for number in (0, 5):
        pair = scored.pairs[number].pair
        for side in ("chosen", "rejected"):
            tokens, ids = scored.pairs[number].side(side), pair.ids(side)
            q = plain_logits(run.path, pair.prompt_ids, ids)
            p = plain_logits(reference, pair.prompt_ids, ids)
            places = np.arange(len(ids))
            expected = {
                "logp": q[places, ids],
                "ref_logp": p[places, ids],
                "log_ratio": q[places, ids] - p[places, ids],
                "entropy": -(np.exp(q) * q).sum(-1),
                "ref_entropy": -(np.exp(p) * p).sum(-1),
            }
            for name, values in expected.items():
                np.testing.assert_allclose(getattr(tokens, name), values, atol=4e-3, err_msg=name)
            # A sample's estimate: near the exact one over a completion, not at each token.
            exact = (np.exp(p) * (p - q)).sum()
            assert tokens.forward_kl.sum() == pytest.approx(exact, rel=0.5, abs=0.05)
            np.testing.assert_allclose(
                tokens.reward, 0.3 * tokens.token_weight * tokens.log_ratio, rtol=1e-6, atol=1e-7
            )


def test_a_cache_of_whole_distributions_gives_the_exact_divergence_and_alternatives(
    tmp_path, reference, folder
):
    places = {}
    for name, options in (("hidden", {"distribution": "exact"}), ("entries", {"head": 323, "tail": 0})):
        places[name] = tmp_path / name
        vocabulary = len(make_tokenizer())
        options = {k: vocabulary if k == "head" else v for k, v in options.items()}
        tdpo.build_cache(reference, folder / "pairs.jsonl", places[name], quiet=True, **options)
    tdpo.fit(
        "dpo", places["hidden"], output=str(tmp_path / "run"), max_steps=3, learning_rate=3e-3, quiet=True
    )
    run = RunFolder.open(tmp_path / "run")
    for place in places.values():
        pair = score_tokens(run, tdpo.open_cache(place), [2], count=5).pairs[0]
        ids = pair.pair.chosen_ids
        q, p = (plain_logits(m, pair.pair.prompt_ids, ids) for m in (run.path, reference))
        np.testing.assert_allclose(pair.chosen.forward_kl, (np.exp(p) * (p - q)).sum(-1), atol=3e-3)
        others = pair.chosen.alternatives
        np.testing.assert_allclose(others.ref_logp, -np.sort(-p, -1)[:, :5], atol=2e-2)
        np.testing.assert_allclose(others.logp, np.take_along_axis(q, others.ids.numpy(), -1), atol=1e-4)
        np.testing.assert_allclose(others.ref_rest, 1 - np.exp(-np.sort(-p, -1)[:, :5]).sum(-1), atol=1e-2)


def test_alternatives_are_the_heads_of_the_cache_and_the_policys_view_of_them(scored, run):
    reader = tdpo.open_cache(run.cache)
    for number in (0, 7):
        record = reader[number]
        for side in ("chosen", "rejected"):
            ids, cached = record.pair.ids(side), record.side(side)
            others = scored.pairs[number].side(side).alternatives
            q = plain_logits(run.path, record.pair.prompt_ids, ids)
            there = cached.dist_logp[:, : reader.head] > -np.inf
            np.testing.assert_array_equal(others.ids.numpy()[there], cached.dist_ids[:, : reader.head][there])
            np.testing.assert_array_equal(others.ref_logp, cached.dist_logp[:, : reader.head])
            expected = np.take_along_axis(q, others.ids.numpy(), -1)
            np.testing.assert_allclose(others.logp[torch.from_numpy(there)], expected[there], atol=1e-4)
            held = np.where(there, np.exp(expected), 0).sum(-1)
            np.testing.assert_allclose(others.rest, 1 - held, atol=1e-4)


def test_weights_are_those_that_training_multiplied_with(scored, run):
    from tdpo.core.composing import compose
    from tdpo.core.join_plan import plan_join
    from tdpo.core.joining import joined_reader

    objective = compose(["tdpo2"], ["tis"])
    reader = tdpo.open_cache(run.cache)
    joined = joined_reader(reader, plan_join(run.config, objective, reader, "--cache"))
    for number, record in enumerate(joined.read(range(12))):
        for side, sign in (("chosen", 1), ("rejected", -1)):
            positive, negative = (getattr(record.added[f"{n}_logp"], side) for n in ("positive", "negative"))
            expected = np.exp(sign * np.clip(positive - negative, -0.5, 1.5))
            np.testing.assert_allclose(scored.pairs[number].side(side).token_weight, expected, rtol=1e-4)


def test_labels_exchanged_in_training_are_the_caches_own_in_the_table(folder):
    output = folder / "runs" / "swapped"
    tdpo.fit(
        "dpo", folder / "cache", weighting=["tis"], swap=True, output=str(output), max_steps=1, quiet=True
    )
    run = RunFolder.open(output)
    reader = tdpo.open_cache(run.cache)
    one = score_tokens(run, reader, [1]).pairs[0]
    np.testing.assert_array_equal(one.chosen.ids, reader[1].pair.chosen_ids)
    # To that training the chosen side was the rejected one, whose weights fall with the score.
    plain = score_tokens(RunFolder.open(folder / "runs" / "tis"), reader, [1]).pairs[0]
    score = np.log(plain.chosen.token_weight)
    inside = (score > -0.5) & (score < 0.5)
    np.testing.assert_allclose(np.log(one.chosen.token_weight)[inside], -score[inside], atol=1e-4)


def test_scores_that_the_cache_lacks_are_named_and_the_rest_is_shown(run, tmp_path, reference, folder):
    tdpo.build_cache(reference, folder / "pairs.jsonl", tmp_path / "bare", quiet=True)
    bare = score_tokens(run, tdpo.open_cache(tmp_path / "bare"), [0])
    assert bare.pairs[0].chosen.token_weight is None
    assert bare.pairs[0].chosen.reward is not None
    assert len(bare.notes) == 1
    assert bare.notes[0].startswith("tis: its token weights are not shown (")
    assert "negative_logp" in bare.notes[0]


def test_pieces_read_as_the_decoded_text(scored):
    tokenizer = make_tokenizer()
    split = 0
    for one in scored.pairs:
        for side in ("chosen", "rejected"):
            pieces, ids = one.side(side).pieces, one.pair.ids(side)
            assert len(pieces) == len(ids)
            assert "".join(pieces) == decode(tokenizer, ids)
            split += pieces.count("")
    assert split > 3
    assert EMOJI in "".join(scored.pairs[0].chosen.pieces)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_tokens_read_as_their_text(seed):
    tokenizer = make_tokenizer()
    ids = np.random.default_rng(seed).integers(0, len(tokenizer), 60).tolist()
    before = [5, 9, 40]
    assert decode(tokenizer, before) + "".join(token_pieces(tokenizer, ids, before)) == decode(
        tokenizer, before + ids
    )
    assert "".join(token_pieces(tokenizer, ids)) == decode(tokenizer, ids)


def sentencepiece_like():
    """Words begin with an underline, a text's first space is dropped, and what is no word is bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581a",
        "\u2581film",
        "s",
    ]
    backend = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_the_space_before_a_first_word_is_kept_and_bytes_are_named():
    tokenizer = sentencepiece_like()
    ids = [260, 261, *(3 + byte for byte in "\N{CLAPPER BOARD}".encode()), 259, 2]
    assert token_pieces(tokenizer, ids, before=[259]) == [
        " film", "s", "", "", "", "\N{CLAPPER BOARD}", " a", "</s>",
    ]  # fmt: skip
    assert [token_name(tokenizer, index) for index in (260, 261, 3 + 0xF0, 3 + 0x41, 2)] == [
        " film", "s", "<F0>", "A", "</s>",
    ]  # fmt: skip


def test_names_of_parts_of_characters_are_their_bytes():
    tokenizer = make_tokenizer()
    ids = tokenizer("\N{CLAPPER BOARD}")["input_ids"]
    names = [token_name(tokenizer, index) for index in ids]
    assert " ".join(name.strip("<>") for name in names) == "\N{CLAPPER BOARD}".encode().hex(" ").upper()
    assert token_name(tokenizer, tokenizer.eos_token_id) == "</s>"
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} == special_ids(tokenizer)


def test_a_table_has_a_row_a_token(run, scored):
    ids = [one.pair.pair_id for one in scored.pairs[:2]]
    table = tdpo.token_table(run.path, [ids[1], ids[0][:12]], alternatives=3)
    assert set(table["pair_id"].to_pylist()) == set(ids)
    own = table.filter(pa.compute.equal(table["pair_id"], ids[0]))
    chosen = own.filter(pa.compute.equal(own["side"], "chosen"))
    assert chosen["position"].to_pylist() == list(range(len(scored.pairs[0].pair.chosen_ids)))
    assert "".join(chosen["text"].to_pylist()) == "".join(scored.pairs[0].chosen.pieces)
    np.testing.assert_allclose(chosen["reward"].to_numpy(), scored.pairs[0].chosen.reward, atol=1e-6)
    assert chosen["special"].to_pylist()[-1]
    for row in chosen.to_pylist():
        assert len(row["alternatives"]) <= 3
        assert sum(one["ref_p"] for one in row["alternatives"]) + row["ref_rest"] == pytest.approx(
            1, abs=1e-3
        )
        assert sum(one["p"] for one in row["alternatives"]) + row["rest"] == pytest.approx(1, abs=1e-5)
    assert table.schema == as_table(scored).schema


def test_tables_of_several_runs_go_into_one_file(scored, tmp_path):
    path = tmp_path / "new" / "tokens.parquet"
    write_tokens(path, [scored, replace(scored, name="again")])
    table = pq.read_table(path)
    assert set(table["run"].to_pylist()) == {"tis", "again"}
    assert table.num_rows == 2 * as_table(scored).num_rows
    with pytest.raises(ConfigError, match=r"--tokens .*: Is a directory; choose a file that can be written"):
        write_tokens(tmp_path, [scored])


def test_the_first_evaluation_cache_is_looked_at_before_the_training_cache(run, folder, tmp_path):
    assert default_cache(run) == str(folder / "cache")
    held = shutil.copytree(folder / "cache", tmp_path / "held")
    tdpo.fit(
        "dpo",
        folder / "cache",
        eval_cache=[f"held={held}", f"again={folder / 'cache'}"],
        output=str(tmp_path / "dpo"),
        max_steps=1,
        quiet=True,
    )
    assert default_cache(RunFolder.open(tmp_path / "dpo")) == str(held)


def test_a_pair_that_is_not_there_or_not_the_only_one_is_named(run):
    reader = tdpo.open_cache(run.cache)
    ids = reader.pair_ids()
    assert ids == [record.pair.pair_id for record in reader]
    assert find_rows(reader, [ids[3].upper(), ids[1]]) == [3, 1]
    with pytest.raises(ConfigError, match=rf"--pair zz: .*cache has no pair of that id; .* such as {ids[0]}"):
        find_rows(reader, ["zz"])
    with pytest.raises(ConfigError, match=r"--pair : .* has no pair"):
        find_rows(reader, [""])
    first = {one[0] for one in ids if sum(other[0] == one[0] for other in ids) > 1}
    with pytest.raises(
        ConfigError, match=r"pairs of .* have ids that begin so, such as .*; give more digits"
    ):
        find_rows(reader, [min(first)])


def shown(scored):
    return [Shown(row, one.pair.pair_id, "asked for") for row, one in enumerate(scored.pairs)]


def test_the_pages_numbers_are_those_of_the_table_cut(scored):
    content = heatmap_data(shown(scored), [scored], 10**7).content
    for one, pair in zip(scored.pairs, content["pairs"], strict=True):
        assert pair["prompt"] == one.prompt
        for side in ("chosen", "rejected"):
            tokens, packed = one.side(side), pair[side]
            texts = [
                packed["other"].get(str(at), content["texts"][n]) for at, n in enumerate(packed["names"])
            ]
            assert texts == tokens.pieces
            assert packed["special"] == [len(tokens.ids) - 1]
            (own,), (ref,) = packed["runs"], packed["references"]
            for key in ("log_ratio", "forward_kl", "entropy", "token_weight"):
                np.testing.assert_allclose(own[key], getattr(tokens, key), rtol=5e-3, atol=6e-5)
                assert own["sums"][key] == pytest.approx(
                    float(getattr(tokens, key).sum()), rel=1e-4, abs=1e-4
                )
            np.testing.assert_allclose(ref["logp"], tokens.ref_logp, rtol=5e-3, atol=6e-5)
            for at, names in enumerate(ref["alternatives"]):
                texts = [scored.names[int(i)] for i in tokens.alternatives.ids[at][: len(names)]]
                assert [content["texts"][name] for name in names] == texts
                np.testing.assert_allclose(
                    ref["p"][at], tokens.alternatives.ref_logp[at][: len(names)].exp(), rtol=5e-3, atol=6e-5
                )


def test_runs_of_one_reference_share_what_it_said(scored):
    content = heatmap_data(shown(scored), [scored, scored], 10**7).content
    assert [run["reference"] for run in content["runs"]] == [0, 0]
    assert len(content["pairs"][0]["chosen"]["references"]) == 1


def test_runs_of_one_beta_share_a_scale_of_rewards_and_all_runs_the_others(scored):
    louder = [
        replace(one, **{side: replace(one.side(side), reward=10 * one.side(side).reward) for side in SIDES})
        for one in scored.pairs
    ]
    runs = [scored, replace(scored, pairs=louder, beta=3.0), scored]
    limits = {
        one["key"]: one["limits"] for one in heatmap_data(shown(scored), runs, 10**7).content["quantities"]
    }
    assert limits["reward"] == pytest.approx([1.0, 10.0, 1.0] * np.array(limits["reward"][0]), rel=0.1)
    assert len(set(limits["forward_kl"])) == 1
    every = np.concatenate([one.side(side).reward for one in scored.pairs for side in SIDES])
    assert 0.95 < (abs(every) <= limits["reward"][0]).mean() <= 1


def test_a_small_budget_leaves_out_alternatives_first(scored):
    whole = heatmap_data(shown(scored), [scored], 10**7)
    size = len(json.dumps(whole.content, separators=(",", ":"), ensure_ascii=False).encode())
    less = heatmap_data(shown(scored), [scored], int(0.9 * size))
    assert whole.alternatives == 8 > less.alternatives
    assert len(json.dumps(less.content, separators=(",", ":"), ensure_ascii=False).encode()) < 0.9 * size
    lengths = [len(pair["chosen"]["names"]) for pair in less.content["pairs"]]
    assert lengths == [len(one.pair.chosen_ids) for one in scored.pairs]
    assert (
        f"the reference&#39;s {less.alternatives} likeliest"
        in heatmap_section(shown(scored), [scored], budget=int(0.9 * size)).html
    )


def test_every_colour_has_ink_that_is_read_on_it():
    rules = colour_classes(".heat").splitlines()
    assert len(rules) == 8 + 1 + 8 + 11
    for rule in rules:
        grounds, inks = re.findall(r"light-dark\((#\w{6}), (#\w{6})\)", rule)
        for ground, ink in zip(grounds, inks, strict=True):
            assert contrast(ground, ink) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_pairs_to_show_are_those_asked_for_the_first_of_each_table_and_some_at_random():
    ids = [f"{number:032x}" for number in range(40)]
    rows = {pair: row for row, pair in enumerate(ids)}
    tables = [
        Ranked("Hardest pairs", "", "", [(pair, 0.0) for pair in ids[:10]]),
        Ranked("Noisiest pairs", "", "", [(pair, 0.0) for pair in ids[5:15]]),
    ]
    found = to_show(tables, rows, [ids[30]], count=8)
    assert [(one.why, one.row) for one in found[:7]] == [
        ("asked for", 30),
        ("hardest", 0), ("noisiest", 5), ("hardest", 1), ("noisiest", 6), ("hardest", 2), ("noisiest", 7),
    ]  # fmt: skip
    assert [one.why for one in found[7:]] == ["random", "random"]
    assert len({one.pair_id for one in found}) == 9
    assert to_show(tables, rows, [ids[30]], count=8) == found
    assert [one.row for one in to_show(tables, rows, [ids[30]], count=0)] == [30]
    assert {one.why for one in to_show([], rows, count=4)} == {"random"}
