"""Tokens come from a file of one's own or the environment, and are told to nobody."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igd.errors import ConfigError
from igd.serve.tokens import SHORTEST, VARIABLE, Token, name_of, tokens_of

SECRET = "s3cret-0123456789abcdef"
VISIBLE = st.characters(min_codepoint=33, max_codepoint=126)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("")
    path.chmod(0o600)
    return path


def test_a_file_holds_names_and_tokens(file: Path) -> None:
    file.write_text(f"# who may ask\n\n  line-1:{SECRET}  \r\nline-2:{SECRET}:with:colons\n")
    first, second = tokens_of(str(file))
    assert (first.name, second.name) == ("line-1", "line-2")
    assert first.sha256 == hashlib.sha256(SECRET.encode()).hexdigest()
    assert name_of((first, second), f"Bearer {SECRET}:with:colons") == "line-2"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o777])
def test_a_file_that_others_could_use_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*chmod 600"):
        tokens_of(str(file))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_ones_own_is_read(file: Path, mode: int) -> None:
    file.write_text(f"a:{SECRET}")
    file.chmod(mode)
    assert [token.name for token in tokens_of(str(file))] == ["a"]


@pytest.mark.parametrize("line", [
    SECRET, f":{SECRET}", f"a b:{SECRET}", f"-a:{SECRET}", f"{'a' * 65}:{SECRET}",
    f"é:{SECRET}", "a:" + "x" * (SHORTEST - 1), f"a: {SECRET}", f"a:{SECRET} {SECRET}",
    f"a:{SECRET}é", f"a:{SECRET}\t{SECRET}", f"a:{SECRET}\x7f{SECRET}", f"line-1:{SECRET}other"])
def test_a_line_that_is_no_pair_is_named_by_its_number_alone(file: Path, line: str) -> None:
    file.write_text(f"line-1:{SECRET}0\n{line}\n")
    with pytest.raises(ConfigError, match="line 2: expected NAME:TOKEN") as raised:
        tokens_of(str(file))
    assert SECRET not in str(raised.value) and "xxx" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"# nobody\n\n", b"a:\xff\xfe" + SECRET.encode()])
def test_a_file_without_a_token_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        tokens_of(str(file))
    assert str(file) in str(raised.value) and SECRET not in str(raised.value)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            tokens_of(str(path))


def test_the_environment_stands_in_for_a_file(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv(VARIABLE, f"a:{SECRET}\nb:{SECRET}b")
    assert [token.name for token in tokens_of(None)] == ["a", "b"]
    file.write_text(f"c:{SECRET}")
    assert [token.name for token in tokens_of(str(file))] == ["c"]
    monkeypatch.setenv(VARIABLE, f"a:{SECRET}\n{SECRET}")
    with pytest.raises(ConfigError, match=f"{VARIABLE}, line 2") as raised:
        tokens_of(None)
    assert SECRET not in str(raised.value)
    monkeypatch.delenv(VARIABLE)
    assert tokens_of(None) == ()


def test_a_token_is_never_shown_once_read(file: Path) -> None:
    file.write_text(f"a:{SECRET}")
    assert SECRET not in repr(tokens_of(str(file)))


@given(st.text(VISIBLE, min_size=SHORTEST, max_size=80), st.text(max_size=90))
def test_only_the_token_itself_opens(secret: str, other: str) -> None:
    known = (Token(name="a", sha256=hashlib.sha256(secret.encode()).hexdigest()),)
    assert name_of(known, f"Bearer {secret}") == "a"
    assert (name_of(known, f"Bearer {other}") == "a") is (other.strip() == secret)
    assert name_of(known, other) is None or other.lower().startswith("bearer ")
