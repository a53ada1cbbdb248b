"""The command line: help, bad input, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from igd import cli, storage
from igd.cli.output import date_of, say, tell
from igd.pipelines import nightly
from igd.storage import s3
from igd.storage.options import VARIABLE

COMMANDS = ["synth", "train", "train-all", "evaluate", "models list", "models show",
            "models promote", "models rollback", "models verify",
            "data magnetic-tile", "plan", "score", "verify", "files", "gc", "report", "serve",
            "demo"]


def run(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "igd.cli", *map(str, words)], text=True,
                          capture_output=True, timeout=timeout_s)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command) -> None:
    said = run(*command.split(), "--help")
    assert said.returncode == 0
    assert f"Example: igd-ray {command}" in " ".join(said.stdout.split())


def test_the_contract_of_options_holds() -> None:
    """Options that later versions may add to and never rename."""
    promised = {
        "train": "--models --preset --set", "train-all": "--models --categories --preset --set",
        "evaluate": "--models --categories --json --ladder --protocol --classes --seeds "
                    "--ensemble --ablation",
        "models list": "--models", "models show": "--models",
        "models promote": "--models", "models rollback": "--models", "models verify": "--models",
        "score": "--models --out --date --catch-up --category --category-from --category-column "
                 "--heatmaps --fpr --json --storage-option --include --exclude --limit "
                 "--unknown-category --new-only",
        "plan": "--models --out --date --category --category-from --category-column --json "
                "--storage-option --include --exclude --limit --unknown-category --new-only",
        "verify": "--out --date --no-inputs --json", "files": "--out --date --table --json",
        "gc": "--out --older-than --dry-run --json",
        "report": "--out --date", "serve": "--models", "demo": "--out",
    }
    for command, options in promised.items():
        said = run(*command.split(), "--help").stdout
        missing = [option for option in options.split() if not re.search(rf"{option}\b", said)]
        assert not missing, (command, missing)


@pytest.fixture
def fails(monkeypatch, capsys) -> Callable[..., str]:
    """Runs a command in this process that must fail with a code, one line and no traceback."""
    def run_here(code: int, *words: object) -> str:
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        ended = cli.run([*map(str, words)])
        said = capsys.readouterr().err
        assert ended == code, said
        line, = said.strip().splitlines()
        assert line.startswith("igd-ray: "), said
        return line
    return run_here


@pytest.fixture
def answers(monkeypatch, capsys) -> Callable[..., str]:
    """Runs a command in this process that must end with a code, and returns what it prints."""
    def run_here(code: int, *words: object) -> str:
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        ended = cli.run([*map(str, words)])
        said = capsys.readouterr()
        assert ended == code, said.err
        return said.out
    return run_here


def test_bad_input_is_refused_in_one_line_before_anything_is_written(
        tiny_data, tiny_models, tmp_path, fails) -> None:
    few = tmp_path / "few"
    (few / "empty").mkdir(parents=True)
    shutil.copytree(tiny_data / "weave" / "train", few / "weave" / "train")
    for path in sorted(few.rglob("*.png"))[3:]:
        path.unlink()
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("mine")
    to, out, dump = ["--models", tmp_path / "new"], tmp_path / "out", tiny_data / "weave" / "test"
    score = ["score", dump, "--date", "2026-01-02", "--models", tiny_models]
    cases = {
        "no category 'screw'": ["train", "screw", tiny_data, *to],
        "category 'empty'": ["train", "empty", few, *to],
        "lies inside DATA": ["train", "weave", tiny_data, "--models", tiny_data / "models"],
        f"--models {tiny_data} lies inside DATA": ["train", "weave", tiny_data, "--models",
                                                   tiny_data],
        "no folder": ["train-all", tmp_path / "missing", *to],
        "has 3 normal images": ["train", "weave", few, *to],
        "unknown config key train.epoch ": ["train", "weave", tiny_data, *to, "--set",
                                            "train.epoch=1"],
        "unknown preset 'quick'": ["train", "weave", tiny_data, *to, "--preset", "quick"],
        "there are: washer, weave": [*score, "--category", "screw", "--out", out],
        "no models": ["models", "list", "--models", tmp_path / "new"],
        "holds something else": [*score, "--category", "weave", "--out", thesis],
        f"no models in file://{tmp_path / 'new'}": [
            "score", dump, "--date", "2026-01-02", *to, "--category-from", "{category}/*", "--out",
            out],
        "--category NAME or --category-from": [*score, "--out", out],
        "expected {category} once": [*score, "--category-from", "*/x", "--out", out],
        "expected a rate": [*score, "--category", "weave", "--out", out, "--fpr", "7"],
        "expected YYYY-MM-DD": ["verify", "--out", out, "--date", "tomorrow"],
        "nothing is published": ["verify", "--out", out, "--date", "2026-01-02"],
        "--unknown-category 'skip'": [*score, "--category", "weave", "--out", out,
                                      "--unknown-category", "skip"],
        "--limit 0": [*score, "--category", "weave", "--out", out, "--limit", "0"],
        "matches none of 12 paths": [*score, "--category", "weave", "--out", out, "--include",
                                     "weave/*"],
        "{date:} is no form": [*score, "/x/{date:}", "--category", "weave", "--out", out],
        "'/x/{date}' needs --date": ["plan", "/x/{date}", "--models", tiny_models, "--category",
                                     "weave"],
        "--out needs --date": ["plan", dump, "--models", tiny_models, "--category", "weave",
                               "--out", out],
        "new beside which tables?": ["plan", dump, "--models", tiny_models, "--category", "weave",
                                     "--new-only"],
        "no output of igd-ray": ["gc", "--out", thesis],
        "such as 36h, 7d or 2w": ["gc", "--out", out, "--older-than", "week"],
        "at least 24h": ["gc", "--out", out, "--older-than", "1h"],
        "no table scores": ["files", "--out", out],
        "expected one of scores, heatmaps, sources": ["files", "--out", out, "--table", "x"],
        "not found": ["score", tmp_path / "gone.tar", "--date", "2026-01-02", "--models",
                      tiny_models, "--category", "weave", "--out", out],
        "without a token": ["serve", "--models", tiny_models, "--host", "0.0.0.0"],
        "unknown scheme": ["models", "list", "--models", "ftp://somewhere/models"],
    }
    for expected, words in cases.items():
        assert expected in fails(2, *words), words
    assert not out.exists() and not (tmp_path / "new").exists()
    assert [path.name for path in thesis.iterdir()] == ["chapter.txt"]


def test_a_usage_error_exits_2() -> None:
    for words in (["score"], ["nope"], ["train", "a", "b", "--models"]):
        assert run(*words).returncode == 2


def test_the_end_of_the_interpreter_takes_no_code_away() -> None:
    """A thread of Arrow that frees a buffer meanwhile aborts the process."""
    code = ("import atexit, os; from igd.cli import main; atexit.register(os.abort); "
            "main()")
    for words, ends, says in (["--version"], 0, "igd-ray "), (["scor"], 2, "No such command"):
        said = subprocess.run([sys.executable, "-c", code, *words], text=True,
                              capture_output=True, timeout=60)
        assert said.returncode == ends and says in said.stdout + said.stderr


def test_who_reads_no_further_is_not_told_of_it(tiny_models) -> None:
    for words in ["--help"], ["models", "list", "--models", str(tiny_models)]:
        read, write = os.pipe()
        os.close(read)
        try:
            said = subprocess.run([sys.executable, "-u", "-m", "igd.cli", *words], stdout=write,
                                  stderr=subprocess.PIPE, text=True, timeout=60)
        finally:
            os.close(write)
        assert (said.returncode, said.stderr) == (1, "")


@pytest.mark.parametrize(("outputs", "code"), [
    (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("2>/dev/full", 0), (">/dev/full", 5)])
def test_a_closed_or_full_output_changes_no_other_code(outputs, code, tiny_models) -> None:
    command = f"{sys.executable} -m igd.cli models list --models"
    said = subprocess.run(["sh", "-c", f"{command} {tiny_models} {outputs}"], text=True,
                          capture_output=True, timeout=60)
    assert said.returncode == code and "Traceback" not in said.stderr
    assert code == 0 or "No space left" in said.stderr
    failed = subprocess.run(["sh", "-c", f"{command} nowhere {outputs}"], text=True,
                            capture_output=True, timeout=60)
    assert failed.returncode == 2 and failed.stdout == ""


def test_a_pipe_that_breaks_elsewhere_is_told(tmp_path, monkeypatch, fails) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("igd.registry.category_folders", broken)
    assert "unexpected BrokenPipeError" in fails(1, "models", "list", "--models", tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupt_that_ends_in_an_error_is_an_interrupt(number, code, tmp_path, monkeypatch,
                                                            capsys) -> None:
    def interrupted(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("igd.registry.category_folders", interrupted)
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert cli.run(["models", "list", "--models", str(tmp_path)]) == code
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert capsys.readouterr().err == (
        "igd-ray: interrupted; run the same command again to go on\n")


@pytest.mark.parametrize("command", ["score", "plan"])
@pytest.mark.parametrize(("change", "source", "said"), [
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "test/dump", "check that the endpoint is reach"),
    ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "test/a.tar", "check that the endpoint is re"),
    ({"AWS_SECRET_ACCESS_KEY": "canary"}, "test/dump", "access denied (endpoint {}); check the cr"),
    ({}, "no-bucket/dump", "there is no such bucket (endpoint {})"),
])
def test_storage_out_of_reach_exits_5_and_names_the_endpoint(
        command, change, source, said, seaweedfs, fresh_s3_clients, tiny_models, tmp_path, fails,
        monkeypatch) -> None:
    monkeypatch.setattr(s3, "RETRY_TIMEOUT_S", 1)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for name, value in change.items():
        monkeypatch.setenv(name, value)
        endpoint = value if "URL" in name else endpoint
    words = ["--date", "2026-01-02", "--out", tmp_path / "out"] if command == "score" else []
    line = fails(5, command, f"s3://{source}", "--models", tiny_models, "--category", "weave",
                 *words)
    assert f"endpoint {endpoint}" in line and said.format(endpoint) in line
    assert "canary" not in line


@pytest.mark.parametrize("catch_up", [0, 2])
def test_an_output_out_of_reach_is_in_the_json_too(catch_up, tiny_data, tiny_models, tmp_path,
                                                   fresh_s3_clients, fails, monkeypatch) -> None:
    monkeypatch.setattr(s3, "RETRY_TIMEOUT_S", 1)
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "a",
                        "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    line = fails(5, "score", tiny_data, "--models", tiny_models, "--category", "weave", "--date",
                 "2026-01-02", "--out", "s3://out/of/reach", "--json", tmp_path / "summary.json",
                 "--catch-up", catch_up)
    found = json.loads((tmp_path / "summary.json").read_text())
    one = found[0] if catch_up else found
    assert (one["date"], one["state"], one["exit_code"]) == ("2026-01-02", "failed", 5)
    assert one["error"] in line and "http://127.0.0.1:9" in line


@pytest.mark.parametrize("command", [
    "plan a --models m", "score a --models m --out o --date today", "verify --out o --date today",
    "report --out o --date today", "files --out o", "gc --out o", "train c d --models m",
    "train-all d --models m", "evaluate d --models m", "serve --models m", "models list --models m",
    "models show c --models m", "models promote c/1 --models m", "models rollback c --models m",
    "models verify --models m", "data magnetic-tile a b"])
def test_a_storage_option_that_is_none_is_refused_by_every_command(command, fails) -> None:
    line = fails(2, *command.split(), "--storage-option", "region=r", "--storage-option", "acl=all")
    assert line.startswith("igd-ray: --storage-option: unknown key 'acl'; known: region, ")


def test_a_storage_option_holds_for_the_command(bucket, fresh_s3_clients, tiny_models, answers,
                                                monkeypatch) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for path in (path for path in tiny_models.rglob("*") if path.is_file()):
        storage.write_bytes(f"{bucket}/{path.relative_to(tiny_models)}", path.read_bytes())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(VARIABLE, "")  # and put back afterwards
    said = answers(0, "models", "verify", "--models", bucket, "--storage-option",
                   f"endpoint={endpoint}")
    assert "2 whole, 0 incomplete, 0 damaged" in said


def test_evaluate_writes_what_others_read(tiny_data, tiny_models, tmp_path) -> None:
    file = tmp_path / "result.json"
    said = run("evaluate", tiny_data, "--models", tiny_models, "--json", file)
    assert said.returncode == 0, said.stderr
    result = json.loads(file.read_text())
    assert set(result["categories"]) == {"weave", "washer"}
    for name, numbers in result["categories"].items():
        assert 0.5 < numbers["image_auroc"] <= 1 and 0.5 < numbers["pixel_auroc"] <= 1, name
        assert numbers["preset"] == "fast"
        row = re.search(rf"^{name}: preset fast.*\n.*\n  igd-ray fast +(\S+)", said.stdout, re.M)
        assert row and float(row[1]) == pytest.approx(numbers["image_auroc"], abs=0.006)
        assert set(numbers["baselines"]) >= {"mean_brightness", "image_size", "l1_mean_image"}
    assert "commit" in result


@pytest.mark.parametrize(("words", "expected"), [
    (["--protocol", "svhn"], "unknown protocol 'svhn'; expected mvtec, mnist, "),
    (["--protocol", "fashion-mnist", "--classes", "Sandel"], "unknown class 'Sandel'; expected 0 "),
    (["--protocol", "mnist", "--preset", "fast"], "preset 'fast' cannot be used"),
    (["--protocol", "mnist", "--ladder"], "--ladder cannot be used with --protocol mnist"),
    (["--models", "m", "--set", "image.fit=squash"], "--set cannot be used with --protocol mvtec"),
    (["--models", "m", "--seed", "1"], "--seed cannot be used with --protocol mvtec"),
    (["--protocol", "mnist", "--fpr", "0.1"], "--fpr cannot be used with --protocol mnist"),
    ([], "--models is missing")])
def test_a_protocol_that_cannot_be_run_is_refused(words, expected, tiny_data, fails) -> None:
    assert expected in fails(2, "evaluate", tiny_data, *words)


def test_the_magnetic_tiles_become_a_category(tmp_path, fails) -> None:
    assert "MT_Free" in fails(2, "data", "magnetic-tile", tmp_path, tmp_path / "out")


def test_a_rate_out_of_range_is_refused_and_no_category_is_blamed(tiny_data, tiny_models,
                                                                  fails) -> None:
    assert "2.0" in fails(2, "evaluate", tiny_data, "--models", tiny_models, "--fpr", 2.0)


def test_a_category_that_cannot_be_evaluated_fails_alone(tiny_data, tiny_models, tmp_path) -> None:
    data, file, page = tmp_path / "data", tmp_path / "result.json", tmp_path / "page.html"
    shutil.copytree(tiny_data, data)
    shutil.rmtree(data / "washer" / "test")
    said = run("evaluate", data, "--models", tiny_models, "--json", file, "--html", page)
    assert said.returncode == 3, said.stderr
    assert re.search(r"^FAILED washer: no test image in .*washer/test", said.stderr, re.M)
    assert list(json.loads(file.read_text())["categories"]) == ["weave"]
    assert said.stdout.splitlines()[-1] == str(page) and "weave" in page.read_text()


def test_models_show_what_a_model_is(tiny_models) -> None:
    listed = run("models", "list", "--models", tiny_models).stdout
    assert re.search(r"^\* weave +\S+ +fast +24 +0\.0400$", listed, re.M), listed
    shown = json.loads(run("models", "show", "weave", "--models", tiny_models).stdout)
    assert shown["config"]["preset"] == "fast"
    assert shown["thresholds_at_fpr"]["0.01"]["supported"] is False
    assert shown["thresholds_at_fpr"]["0.01"]["alpha"] == pytest.approx(1 / 25)


def test_models_are_promoted_rolled_back_and_verified(tiny_models, tmp_path, fails,
                                                         answers) -> None:
    to = ["--models", tmp_path]
    shutil.copytree(tiny_models / "weave", tmp_path / "weave")
    first, = (path.parent.name for path in tmp_path.glob("weave/*/bundle.json"))
    shutil.copytree(tmp_path / "weave" / first, tmp_path / "weave" / "next")
    assert "expected CATEGORY/VERSION" in fails(2, "models", "promote", "weave", *to)
    assert f"its versions are: {first}, next" in fails(2, "models", "promote", "weave/none", *to)
    assert "nothing was in use before" in fails(2, "models", "rollback", "weave", *to)
    said = answers(0, "models", "promote", "weave/next", "--why", "a new lamp", *to)
    assert said == "weave: next is in production (promotion 2)\n"
    listed = answers(0, "models", "list", *to)
    assert re.search(r"^\* weave +next .*\n +since 20\S+: a new lamp$", listed, re.M), listed
    assert re.search(rf"^  weave +{first} ", listed, re.M), listed
    said = answers(0, "models", "rollback", "weave", *to)
    assert said == f"weave: {first} is in production instead of next (promotion 3)\n"
    shown = json.loads(answers(0, "models", "show", "weave", *to))
    assert shown["in_production"] and shown["version"] == first
    assert [record["version"] for record in shown["history"]] == [first, "next", first]
    assert shown["history"][2]["why"] == "rollback from next"
    assert not json.loads(answers(0, "models", "show", "weave/next", *to))["in_production"]

    (tmp_path / "weave" / "half").mkdir()
    assert answers(0, "models", "verify", *to).splitlines() == [
        f"whole weave/{first}: fast, 24 calibration images, in production",
        "incomplete weave/half: no bundle.json",
        "whole weave/next: fast, 24 calibration images", "2 whole, 1 incomplete, 0 damaged"]
    (tmp_path / "weave" / "next" / "weights.safetensors").write_bytes(b"")
    assert "\nDAMAGED weave/next: " in answers(3, "models", "verify", "weave", *to)
    assert "no category 'screw'" in fails(2, "models", "verify", "screw", *to)
    (tmp_path / "weave" / first / "bundle.json").write_text("{")
    listed = answers(0, "models", "list", *to)
    assert re.search(rf"^\* weave +{first} .*damaged: .*\n +since 20", listed, re.M), listed
    assert "no models" in fails(2, "models", "verify", "--models", tmp_path / "none")


def test_a_plan_from_the_command_line(tiny_data, tiny_models, tmp_path, answers) -> None:
    file = tmp_path / "plan.json"
    shutil.copytree(tiny_data / "weave" / "test", tmp_path / "dump" / "weave")
    (tmp_path / "dump" / "loose.png").write_bytes(b"x")
    said = answers(0, "plan", tmp_path / "dump", "--models", tiny_models, "--category-from",
                   "{category}/*", "--exclude", "*/good/*", "--out", tmp_path / "out", "--date",
                   "2026-01-02", "--json", file)
    found = json.loads(file.read_text())
    assert said.startswith(f"7 images, {found['bytes'] / 1024:.1f} KiB to read, 2 shards\n")
    assert f"  weave: 6 (fast, {found['categories']['weave']['version']})\n" in said
    assert re.search(r"^  would reject 1: unrouted \(first: .*/loose.png\)$", said, re.M)
    assert "  6 images left out by --include and --exclude\n" in said
    assert "0 images are published for 2026-01-02; 7 of these are not among them" in said
    assert not (tmp_path / "out").exists()


def test_a_name_from_an_archive_is_one_line_without_colours(capsys) -> None:
    for write in (tell, say):
        write("would reject \x1b[31m\nrun: published.png")
    said = capsys.readouterr()
    assert said.out == said.err == "would reject \\u001b[31m\\u000arun: published.png\n"


def test_nothing_new_from_the_command_line(tiny_models, tmp_path, answers) -> None:
    (tmp_path / "dump").mkdir()
    where = [tmp_path / "dump", "--models", tiny_models, "--out", tmp_path / "out", "--category",
             "weave", "--new-only"]
    assert "0 images, 0 bytes to read" in answers(0, "plan", *where)
    for said in ("nothing new; 0 planned", "already published; 0 planned"):
        printed = answers(0, "score", *where, "--date", "2026-01-02", "--json",
                          tmp_path / "said.json")
        assert said in printed and "scores:" not in printed
    assert json.loads((tmp_path / "said.json").read_text())["state"] == "nothing new"


@pytest.mark.parametrize("zone", ["Etc/GMT-14", "Etc/GMT+12"])  # the one or the other is off
def test_today_and_yesterday_are_those_of_utc(zone, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        before = datetime.now(UTC).date()
        found = date_of("today"), date_of("yesterday")
        assert before in (found[0], found[1] + timedelta(days=1))
    time.tzset()
    assert date_of("2026-01-02") == date(2026, 1, 2)


def test_missed_nights_are_told_one_by_one(tiny_models, tmp_path, answers, monkeypatch) -> None:
    """Dumps without an image, for which Ray is not needed; one of them is not there."""
    monkeypatch.setattr(nightly, "connected", lambda address: nullcontext())
    file = tmp_path / "nights.json"
    for day in (2, 4, 5):
        (tmp_path / "dumps" / f"2026/01/0{day}").mkdir(parents=True)

    def night(day: str, code: int, *more: str) -> tuple[list[str], Any]:
        said = answers(code, "score", tmp_path / "dumps/{date:%Y/%m/%d}", "--models", tiny_models,
                       "--category", "weave", "--out", tmp_path / "out", "--date", day, "--json",
                       file, *more)
        return re.findall(r"^run (\S+)-\w+-g1: (.+);", said, re.M), json.loads(file.read_text())

    runs, found = night("2026-01-02", 0)
    assert found["planned"] == 0 and len(runs) == 1
    runs, found = night("2026-01-05", 2, "--catch-up", "7")
    assert [run for run, _ in runs] == ["2026-01-04", "2026-01-05"]
    assert [(one["date"], one["state"], one["exit_code"]) for one in found] == [
        ("2026-01-03", "failed", 2), ("2026-01-04", "published", 0), ("2026-01-05", "published", 0)]
    runs, found = night("2026-01-05", 0, "--catch-up", "7")
    assert found[0]["already_published"] and len(found) == len(runs) == 1
    assert night("2026-01-03", 2)[1]["error"].endswith("or an image")


def test_a_run_from_the_command_line(tiny_data, tiny_models, tmp_path) -> None:
    where = ["--out", tmp_path / "out", "--date", "2026-01-02"]
    file = tmp_path / "summary.json"
    dump = tmp_path / "dump"
    shutil.copytree(tiny_data / "weave" / "test", dump)
    (dump / "broken.png").write_bytes(b"\x89PNG")
    words = ["score", dump, "--models", tiny_models, "--category", "weave", *where, "--json",
             file]
    said = run(*words, timeout_s=120)
    assert said.returncode == 3, said.stderr  # one of 13 rejected, more than 1%
    summary = json.loads(file.read_text())
    assert summary["state"] == "published"
    assert (summary["planned"], summary["scored"]) == (13, 12)
    assert summary["rejected"] == {"not_image": 1}
    assert summary["seconds"] > 0 and summary["images_per_s"] > 0
    assert "support no false-positive rate below 0.0400" in said.stderr
    assert "13/13 images" in said.stderr and "rejected 1: not_image" in said.stdout
    assert "already published" in run(*words).stdout
    found = run("verify", *where)
    assert found.returncode == 0 and "13 images counted again have their row" in found.stdout
    listed, = run("files", *where).stdout.splitlines()
    assert pq.read_table(listed).num_rows == 13
    assert run("gc", *where[:2], "--dry-run").stdout == "would remove 0 files, 0 bytes\n"
    page = run("report", *where)
    assert page.returncode == 0, page.stderr
    assert "broken.png" in Path(page.stdout.split()[-1].removeprefix("file://")).read_text()
    (dump / "broken.png").unlink()
    found = run("verify", *where)
    assert found.returncode == 0 and "1 rows are of objects that are gone" in found.stdout
    assert "counted again" not in run("verify", *where, "--no-inputs").stdout


@pytest.mark.timeout(300)
def test_train_all_tells_machines_and_people_and_goes_on(tiny_data, tmp_path) -> None:
    data, models = tmp_path / "data", tmp_path / "models"
    shutil.copytree(tiny_data / "weave" / "train", data / "weave" / "train")
    few = data / "few" / "train" / "good"
    few.mkdir(parents=True)
    for number in range(3):
        shutil.copy(data / "weave" / "train" / "good" / f"00{number}.png", few)
    shutil.copytree(few, data / "my part")
    words = ["train-all", data, "--models", models, "--preset", "fast", "--set", "image.size=64",
             "--min-images", 5]
    first = run(*words, "--json", "-", "--html", tmp_path / "page.html", timeout_s=120)
    assert first.returncode == 3, first.stderr
    events = [json.loads(line) for line in first.stdout.splitlines()]
    assert {event["event"] for event in events[:-1]} == {"progress"}
    summary = events[-1]
    assert summary["event"] == "summary"
    state = {found["category"]: found["error"] for found in summary["categories"]}
    assert state["weave"] is None and "expected at least 5" in state["few"]
    assert "FAILED few: 3 of 3 training images can be read" in first.stderr
    assert "1 of 2 categories have a model" in first.stderr
    assert "left out 'my part': its name" in first.stderr and len(summary["left_out"]) == 1
    assert "3 of 3 training images" in (tmp_path / "page.html").read_text()
    again = run(*words, timeout_s=120)
    assert again.returncode == 3 and "finished before: weave (fast)" in again.stdout
    assert "1 had it before" in again.stdout


@pytest.mark.timeout(300)
def test_a_training_told_to_stop_says_how_it_goes_on(tiny_data, tmp_path) -> None:
    models = tmp_path / "models"
    process = subprocess.Popen(
        [sys.executable, "-m", "igd.cli", "train-all", str(tiny_data), "--categories", "weave",
         "--models", str(models), "--preset", "small", "--set", "net.width=1", "--set",
         "train.epochs=10000", "--set", "distill.iterations=1", "--checkpoint-every", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(models.glob("_training/**/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "run the same command again" in said and "Traceback" not in said
