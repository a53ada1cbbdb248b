"""YAML into a command line: what is refused, and that nothing is guessed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.core
import typer.main

from igd import cli
from igd.errors import ConfigError
from jobs.command import MAX_BYTES, command_line, read_config

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs"
ENOUGH = "data: d\nmodels: m\n"


@pytest.fixture
def written(tmp_path):
    def write(content: str | bytes) -> Path:
        file = tmp_path / "job.yaml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file
    return write


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_the_files_for_training_are_valid(preset) -> None:
    words = command_line("train-all", JOBS / f"train_all.{preset}.yaml")
    assert f"--preset={preset}" in words
    assert words[-2] == "--"


def test_the_file_for_the_night_is_valid_and_the_date_stands_beside_it() -> None:
    words = command_line("score", JOBS / "score_nightly.yaml", date="2026-01-02")
    assert words[-2:] == ["--", "s3://CHANGE-ME/dumps/{date}"]
    assert {"--catch-up=7", "--date=2026-01-02"} <= set(words)


def test_what_is_given_beside_the_file_may_not_stand_in_it(written) -> None:
    file = written("sources: [a]\nmodels: m\nout: o\ndate: '2026-01-01'\n")
    assert "--date=2026-01-01" in command_line("score", file)
    with pytest.raises(ConfigError, match=r"job.yaml: date is given beside .*'2026-01-02'"):
        command_line("score", file, date="2026-01-02")


def test_the_command_is_told_what_the_file_says(written) -> None:
    """Also where a value looks like an option."""
    name, *words = command_line("train-all", written(
        "data: --help\nmodels: s3://m/x y\nset: [train.epochs=4, image.fit=squash]\nseed: -3\n"
        "categories: 'a,b'\n"))
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    told = group.commands[name].make_context(name, words).params
    assert {key: told[key] for key in ("data", "models", "settings", "seed", "categories")} == {
        "data": "--help", "models": "s3://m/x y", "seed": -3, "categories": "a,b",
        "settings": ["train.epochs=4", "image.fit=squash"]}


def test_a_flag_is_given_or_not(written) -> None:
    assert command_line("evaluate", written("data: d\nladder: true\nablation: false\nfpr: 1\n")) \
        == ["evaluate", "--fpr=1", "--ladder", "--", "d"]


@pytest.mark.parametrize(("content", "said"), [
    (ENOUGH + "sed: 1\n", "unknown key 'sed' (value 1); known: at-once, "),
    (ENOUGH + "ray-address: auto\n", "unknown key 'ray-address'"),
    (ENOUGH + "1: 2\n", "unknown key 1"),
    (ENOUGH + "seed: '1'\n", "seed is '1'; expected a whole number"),
    (ENOUGH + "seed: true\n", "seed is True; expected a whole number"),
    (ENOUGH + "seed: 1.0\n", "seed is 1.0; expected a whole number"),
    (ENOUGH + "preset: no\n", "preset is False; expected text"),
    (ENOUGH + "categories: 2026-01-02\n", "categories is datetime.date(2026, 1, 2); expected"),
    (ENOUGH + "categories:\n", "categories is None; expected text"),
    (ENOUGH + "categories: [a, b]\n", "categories is ['a', 'b']; expected text"),
    (ENOUGH + "set: a=1\n", "set is 'a=1'; expected a list"),
    (ENOUGH + "set: [{a: 1}]\n", "set is {'a': 1}; expected text"),
    ("models: m\n", "data missing"),
    ("{}", "data, models missing"),
])
def test_a_value_that_does_not_belong_is_named_with_its_file(written, content, said) -> None:
    file = written(content)
    with pytest.raises(ConfigError) as error:
        command_line("train-all", file)
    assert str(error.value).startswith(f"{file}")
    assert said in str(error.value)


def test_a_number_where_a_fraction_is_wanted(written) -> None:
    with pytest.raises(ConfigError, match="fpr is True; expected a number"):
        command_line("evaluate", written("data: d\nfpr: true\n"))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("content", "said"), [
    (BOMB, "uses an alias"),
    ("a: &a 1\nb: *a\n", "uses an alias"),
    ("a: " + "x" * MAX_BYTES, "larger than 65536 bytes"),
    ("- a\n- b\n", "holds ['a', 'b']; expected keys"),
    ("", "holds None; expected keys"),
    ("a: 1\nb: 2\na: 3\n", "key 'a' stands twice"),
    ("a: [\n", "not valid YAML"),
    ("a: 1\n---\na: 2\n", "not valid YAML"),
    ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ("a: 2026-99-99\n", "not valid YAML"),
    (b"a: \xff\xfe\n", "not valid YAML"),
    ("[" * MAX_BYTES, "more than 8 levels"),
    ("- " * (MAX_BYTES // 2), "more than 8 levels"),
    ("? [a]\n: 1\n", "not valid YAML"),
    ("".join(f"{number}:\n" for number in range(9_000)) + "1:\n", "key '1' stands twice"),
])
def test_what_is_no_plain_mapping_is_refused(written, content, said) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(written(content))
    assert said in str(error.value)
    assert len(str(error.value)) < 500


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml cannot be read: No such file"):
        read_config(tmp_path / "gone.yaml")


@pytest.mark.parametrize(("address", "job", "words", "said"), [
    ("", "train_all", ["job.yaml"], "a job starts no cluster of its own"),
    ("auto", "train_all", [], "expected one YAML file, got 0"),
    ("auto", "train_all", ["job.yaml", "2026-01-02"], "expected one YAML file, got 2"),
    ("auto", "score_nightly", ["job.yaml", "today", "again"], "expected one YAML file [DATE], got"),
    ("auto", "train_all", ["gone.yaml"], "gone.yaml cannot be read"),
    ("auto", "score_nightly", ["jobs/score_nightly.yaml", "2026-1-2"], "--date '2026-1-2': expect"),
])
def test_a_job_that_cannot_run_says_so_in_one_line(address, job, words, said) -> None:
    ran = subprocess.run([sys.executable, "-m", f"jobs.{job}", *words], cwd=ROOT, text=True,
                         env={**os.environ, "RAY_ADDRESS": address}, capture_output=True,
                         timeout=60)
    assert ran.returncode == 2
    assert said in ran.stderr and ran.stderr.count("\n") == 1


def test_a_job_computes_nothing() -> None:
    for path in JOBS.glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                 for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {"torch", "numpy"} & {name.split(".")[0] for name in names}, path


def test_a_config_is_refused_before_torch_or_ray_is_loaded() -> None:
    code = ("import sys, jobs.command; heavy = {'torch', 'ray'} & set(sys.modules); "
            "sys.exit(str(heavy) if heavy else 0)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
