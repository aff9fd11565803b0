"""Trackers are told what the run's own log is told, and what the run is."""

import json
import sqlite3
import struct

import pytest

import tdpo
from tdpo.core.config.fit import FitConfig
from tdpo.core.config.tracking import TRACKERS, trackers


def fit(cache, output, **options):
    values = {
        "learning_rate": 1e-2, "logging_steps": 2, "max_steps": 4, "eval_steps": 2, "save_steps": 2,
        "eval_cache": [f"dev={cache}", f"again={cache}"], "set": {"beta": 0.3}, "quiet": True, **options,
    }  # fmt: skip
    return tdpo.fit("tdpo2", cache, output=str(output), **values)


def logged(folder):
    """(name as trackers have it, step) -> value, of every figure in metrics.jsonl."""
    figures = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        step = event.pop("step")
        for name, value in event.items():
            side = "eval/" if name.startswith("eval_") else "train/"
            figures[side + name.removeprefix("eval_"), step] = value
    return figures


def event_files(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(events):
    found = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found[tag, event.step] = event.value
    return found


def arguments(events):
    (text,) = {event.tensor_proto.string_val[0] for event in events.Tensors("args/text_summary")}
    return json.loads(text)


def check_description(values, cache):
    """What a run is filed under: the objective's options, ours, and the cache's identity."""
    assert values["plugin"] == "tdpo2"
    assert values["objective"]["beta"] == 0.3
    assert values["objective"]["alpha"] == 0.5
    assert values["options"]["learning_rate"] == 0.01
    assert len(values["cache_identity"]) == 64
    assert values["eval_cache_identities"] == dict.fromkeys(("dev", "again"), values["cache_identity"])


def test_tensorboard_holds_what_metrics_jsonl_holds(tmp_path, cache):
    pytest.importorskip("tensorboard")
    fit(cache, tmp_path / "run", report_to="tensorboard")
    events = event_files(tmp_path / "run")
    wanted, found = logged(tmp_path / "run"), scalars(events)
    assert {"train/rewards/margins", "eval/dev_rewards/accuracies", "eval/again_kl/chosen"} <= {
        n for n, _ in found
    }
    assert found.keys() == wanted.keys()
    for place, value in wanted.items():
        assert found[place] == pytest.approx(value, rel=1e-6, abs=1e-30), place
    said = arguments(events)
    assert said["run_name"] == "run"
    assert said["learning_rate"] == 0.01
    check_description(said["tdpo"], cache)
    card = (tmp_path / "run" / "README.md").read_text()
    assert said["tdpo"]["cache_identity"] in card


def test_a_resumed_run_goes_on_in_the_same_tensorboard(tmp_path, cache):
    """What was logged after the checkpoint is replaced."""
    pytest.importorskip("tensorboard")
    import shutil

    fit(cache, tmp_path / "run", report_to="tensorboard")
    before = scalars(event_files(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    fit(cache, tmp_path / "run", report_to="tensorboard", resume=True)
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    after = scalars(event_files(tmp_path / "run"))
    assert after.keys() == before.keys()
    for (name, step), value in logged(tmp_path / "run").items():
        assert after[name, step] == pytest.approx(value, rel=1e-6, abs=1e-30), (name, step)


def test_without_a_tracker_nothing_is_written_for_one(tmp_path, cache):
    fit(cache, tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not (tmp_path / "run" / "runs").exists()


def wandb_records(file):
    """What an offline run of wandb wrote: protobuf records in LevelDB's log format, after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_wandb_offline_holds_what_metrics_jsonl_holds(tmp_path, cache, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(cache, tmp_path / "run", report_to="wandb")
    wandb.finish()
    wandb.teardown()  # its service has written everything then
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    found, config, run = {}, {}, None
    for record in wandb_records(file):
        if record.HasField("run"):
            run = record.run
        for item in [*record.run.config.update, *record.config.update]:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        found |= {(name, row["train/global_step"]): value for name, value in row.items() if len(row) > 5}
    assert (run.project, run.display_name) == ("tdpo", "run")
    check_description(config["tdpo"], cache)
    wanted = logged(tmp_path / "run")
    for name in ("train/loss", "train/rewards/margins", "eval/dev_loss", "eval/again_kl/margin"):
        for step in (2, 4):
            assert found[name, step] == pytest.approx(wanted[name, step]), (name, step)


def test_trackio_holds_what_metrics_jsonl_holds(tmp_path, cache, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    fit(cache, tmp_path / "run", report_to="trackio")
    (database,) = (tmp_path / "trackio").glob("tdpo*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, metrics from metrics").fetchall()
    found = {}
    for name, metrics in rows:
        assert name == "run"
        values = json.loads(metrics)
        found |= {(key, values["train/global_step"]): value for key, value in values.items()}
    for place in (("eval/dev_loss", 4), ("eval/again_kl/margin", 2), ("train/rewards/margins", 4)):
        assert found[place] == pytest.approx(logged(tmp_path / "run")[place])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_said_at_once(monkeypatch, tmp_path, name):
    """Before the cache, which is not there, is looked for."""
    monkeypatch.setattr("tdpo.core.config.tracking.find_spec", lambda package: None)
    with pytest.raises(tdpo.TdpoError, match=f"--report-to {name}: .* pip install {name}"):
        tdpo.fit("dpo", tmp_path / "nowhere", report_to=name, quiet=True)


def test_names_of_trackers(monkeypatch):
    monkeypatch.setattr("tdpo.core.config.tracking.find_spec", lambda package: package)
    assert trackers(FitConfig("dpo")) == []
    assert trackers(FitConfig("dpo", report_to="none")) == []
    assert trackers(FitConfig("dpo", report_to="wandb, tensorboard,wandb")) == ["wandb", "tensorboard"]
    for wrong in ("tensorbord", "wandb,", "wandb,none"):
        with pytest.raises(tdpo.TdpoError, match="no tracker"):
            trackers(FitConfig("dpo", report_to=wrong))
