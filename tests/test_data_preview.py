"""A dry run shows what a build would score and leave out, and builds nothing."""

import json

import pytest
from chat_templates import HEADERS, byte_bpe, unigram
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_model, make_tokenizer

import tdpo
from tdpo.core.caching.preview import pieces, visible
from tdpo.core.cli import main

ROWS = [
    {"prompt": "the film", "chosen": " was great", "rejected": " was bad"},
    {"prompt": "the film", "chosen": None, "rejected": " was bad"},
    {"prompt": "I loved\n", "chosen": "it  all", "rejected": "the plot"},
    {"prompt": "the film", "chosen": " was dull", "rejected": " was dull"},
    *({"prompt": f"the plot {at}", "chosen": " good", "rejected": " bad"} for at in range(16)),
]
TOKENIZERS = {"byte BPE": byte_bpe(), "unigram": unigram()}


@pytest.fixture
def folder(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(reference)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def dry_run(capsys, *flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["cache", "build", "--ref", "model", "--dataset", "a.jsonl", "--dry-run", *flags])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("tdpo:")]
    return stopped.value.code, captured.out, errors


def test_the_first_pairs_are_shown_with_the_boundary(folder, capsys):
    before = sorted(folder.rglob("*"))
    code, out, errors = dry_run(capsys, "--max-skipped", "0.2")
    assert (code, errors) == (0, [])
    lines = out.splitlines()
    assert lines[0] == "row 0"
    assert [line.split("‖")[0].split()[0] for line in lines[1:4]] == ["prompt", "chosen", "rejected"]
    prompt, chosen = lines[1].split(maxsplit=1)[1], lines[2].split("‖ ")[1]
    assert prompt.endswith(" ‖")
    assert prompt.replace("|", "").removesuffix(" ‖") == "the·film"
    assert chosen.replace("|", "") == "·was·great</s>"
    assert "↵" in lines[5]
    assert "18 pairs from 20 rows (explicit)" in lines
    assert "  skipped   1 missing chosen (row 1)" in lines
    assert "  skipped   1 identical sides (row 3)" in lines
    assert sorted(folder.rglob("*")) == before


def test_json_holds_ids_and_tokens_that_the_build_would_score(folder, capsys):
    code, out, errors = dry_run(capsys, "--max-skipped", "0.2", "--json")
    assert (code, errors) == (0, [])
    preview = json.loads(out)
    reader = tdpo.build_cache("model", "a.jsonl", "cache", max_skipped=0.2, quiet=True)
    records = list(reader)
    assert [pair["pair_id"] for pair in preview["pairs"]] == [each.pair.pair_id for each in records[:3]]
    for pair, record in zip(preview["pairs"], records, strict=False):
        for side in ("prompt", "chosen", "rejected"):
            assert pair[f"{side}_ids"] == getattr(record.pair, f"{side}_ids").tolist()
            assert len(pair[f"{side}_tokens"]) == len(pair[f"{side}_ids"])
    manifest = reader.manifest
    assert (preview["rows"], preview["kept"]) == (manifest.source_rows, manifest.rows)
    assert preview["prompt_tokens"] == manifest.prompt_tokens
    assert preview["completion_tokens"] == manifest.completion_tokens
    assert preview["max_length"] == 128
    found = {reason: (entry["count"], entry["first_rows"]) for reason, entry in preview["skipped"].items()}
    assert found == {reason: (s.count, list(s.first_rows)) for reason, s in manifest.skipped.items()}
    assert preview["refusal"] is None


def test_a_build_that_would_fail_is_told_with_what_was_seen(folder, capsys):
    for flags in ((), ("--json",)):
        code, out, errors = dry_run(capsys, *flags)
        assert code == 2
        assert len(errors) == 1
        assert "2 of 20 rows (10.0 %) cannot be used" in errors[0]
        assert "--max-skipped" in errors[0]
    assert json.loads(out)["refusal"] in errors[0]
    assert len(json.loads(out)["pairs"]) == 3


def test_data_that_cannot_be_read_is_refused_as_the_build_does(folder, capsys):
    (folder / "a.jsonl").write_text("nothing")
    code, out, errors = dry_run(capsys)
    assert (code, out, len(errors)) == (2, "", 1)
    assert "not valid JSON" in errors[0]


def test_no_weights_are_read(folder, capsys):
    for weights in (folder / "model").resolve().glob("*.safetensors"):
        assert weights.stat().st_size > 0
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder / "broken")
    tokenizer.save_pretrained(folder / "broken")
    (folder / "broken" / "model.safetensors").write_bytes(b"not weights")
    assert tdpo.preview_build("broken", "a.jsonl", max_skipped=0.2, quiet=True).kept == 18


def test_json_is_for_dry_runs(folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["cache", "build", "--ref", "model", "--dataset", "a.jsonl", "--json"])
    assert stopped.value.code == 2
    assert "--json is for --dry-run" in capsys.readouterr().err


def test_several_files_a_random_order_and_streaming_go_through_the_command(folder, capsys):
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    flags = ["--dataset", "b.jsonl", "--shuffle-seed", "1", "--limit", "22", "--json", "--max-skipped", "0.5"]
    code, out, _ = dry_run(capsys, *flags)
    assert code == 0
    table = json.loads(out)
    assert table["rows"] == 22
    code, out, _ = dry_run(capsys, *flags, "--streaming")
    assert code == 0
    assert json.loads(out)["rows"] == 22


def test_long_prompts_are_shown_at_both_ends(folder, reference):
    rows = [{"prompt": "the film was " * 30, "chosen": " great" * 20, "rejected": " bad"}]
    preview = tdpo.preview_build(reference, rows, max_length=2000, quiet=True)
    shown = str(preview).splitlines()[1]
    left_out = len(preview.pairs[0].prompt_tokens) - 72
    assert f"|... {left_out:,} more tokens ...|" in shown
    assert "".join(preview.pairs[0].prompt_tokens) == rows[0]["prompt"]


def test_conversations_show_what_the_template_wrote(folder, reference):
    (folder / "t.jinja").write_text(HEADERS)
    rows = [{"prompt": "the film?", "chosen": [{"role": "assistant", "content": "great"}], "rejected": "bad"}]
    preview = tdpo.preview_build(reference, rows, chat_template="t.jinja", quiet=True)
    assert preview.form == "conversational"
    assert "".join(preview.pairs[0].prompt_tokens).endswith("<|im_start|>assistant\n")
    assert "".join(preview.pairs[0].rejected_tokens) == "bad<|im_end|>\n"


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.characters(codec="utf-8", exclude_characters="\ufffd\u2581")
        | st.sampled_from(" \n\u200d\U0001f469"),
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_pieces_of_tokens_make_up_their_text(tokenizer, text, cut):
    ids = tokenizer(text)["input_ids"]
    before, after = ids[:cut], ids[cut:]
    assert len(pieces(tokenizer, after, before)) == len(after)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)
    if "\ufffd" not in tokenizer.decode(before):
        assert "".join([*pieces(tokenizer, before), *pieces(tokenizer, after, before)]) == tokenizer.decode(
            ids
        )


def test_what_cannot_be_seen_is_marked():
    assert visible([" a\n", "\t", "", "\u202e\u200d", "\x1b[0m", "\u00a0é"]) == [
        "·a↵",
        "⇥",
        "◌",
        "\\u202e\\u200d",
        "\\x1b[0m",
        "\\xa0é",
    ]
