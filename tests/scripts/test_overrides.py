"""What is typed arrives as it was typed, and what is printed can be typed."""

from __future__ import annotations

import itertools
import os
import shlex

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scripts.console import composing, overrides
from scripts.console.overrides import (
    grammar_problem,
    parsed,
    quoted,
    resume_line,
    shell_line,
    understood,
)

#: Every character with a meaning to a shell, to Hydra or to OmegaConf, and some with none.
SPECIAL = " ()=,#&{}'\"~\\$:.[]üß/-+%!;<>|*?@`1a"
AWKWARD = [
    "my run (1)",
    "a,b",
    "k=v",
    "#1",
    "R&D",
    "{x}",
    "it's",
    'the "new" one',
    "Wirbelsäule",
    "~",
    "~/x",
    "x~y",
    "123",
    "1e3",
    "null",
    "true",
    "-1",
    "a${b}",
    "a\\${b}",
    "a\\\\${b}",
    "${",
    "'x'",
    '"x"',
    "\\",
    "a\\",
    "a\\'",
    'a\\"',
    " a ",
    "a:b",
    "[a]",
    "é",
    "$HOME",
]


def read_back(word: str) -> object:
    """The value as a command would see it: parsed by Hydra, resolved by OmegaConf."""
    return OmegaConf.to_container(OmegaConf.create({"x": parsed(word).value()}), resolve=True)["x"]


@pytest.mark.parametrize("text", AWKWARD)
def test_any_text_comes_back_as_it_was(text):
    assert read_back(quoted("title", text)) == text


def test_every_two_special_characters_come_back():
    for text in map("".join, itertools.product(SPECIAL, repeat=2)):
        assert read_back(quoted("title", text)) == text, text


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.5,
        1e-9,
        [1, "a b", None],
        {"low": 1.0, "name": "a,b"},
        [{"name": "rod (1)", "at": [1.5, -2.0]}],
    ],
)
def test_numbers_lists_and_dicts_come_back(value):
    assert read_back(quoted("x", value)) == value


def test_a_line_break_is_refused():
    with pytest.raises(ValueError, match="line break"):
        quoted("title", "a\nb")


@pytest.mark.parametrize("text", AWKWARD)
def test_a_plain_word_of_a_path_is_that_path_and_reading_it_twice_is_as_once(text, tmp_path):
    word = f"out={tmp_path}/{text}"
    expected = (
        f"{tmp_path}/{text}"
        if "${" not in text and not overrides.re.search(r"\\[\\]", text)
        else None
    )
    once = understood([word])
    assert understood(once) == once
    if expected is not None:
        assert read_back(once[0]) == expected


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("out=2026", "2026"),
        ("out=true", "true"),
        ("patient.bundle=null", None),
        ("out='a b'", "a b"),
        ('out="a,b"', "a,b"),
        (r"out=a\,b", "a,b"),  # Hydra's escape, as before
        ("title=Cage, new (v2)", "Cage, new (v2)"),
        ("title=~ 5 mm", "~ 5 mm"),
        ("runs=runs/a", ["runs/a"]),
        ("runs=runs/a b,runs/c", ["runs/a b", "runs/c"]),
        ("runs=[runs/a (1),runs/c]", ["runs/a (1)", "runs/c"]),
        ("runs=['runs/a,b',c]", ["runs/a,b", "c"]),
        ("base=[solver=coarse,fem=demo]", ["solver=coarse", "fem=demo"]),
        ("optimizer.iterations=3", 3),
        ("+phantom.seed=3", 3),
    ],
)
def test_a_value_is_read_by_the_first_rule_that_fits(word, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_back(understood([word])[0]) == value


def test_an_existing_path_is_that_path_and_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a,b", "'q'", "null", "[x]"):
        (tmp_path / name).mkdir()
        assert read_back(understood([f"out={name}"])[0]) == name
    assert (
        read_back(understood(["runs=a,b"])[0])
        == read_back(understood(["runs=[a,b]"])[0])
        == ["a,b"]
    )
    assert read_back(understood(["runs=[c,a,b,d (1)]"])[0]) == ["c", "a,b", "d (1)"]
    assert read_back(understood(["out=~/deep/er"])[0]) == f"{tmp_path}/deep/er"
    assert read_back(understood(["runs=[~/a,~/b (1)]"])[0]) == [
        f"{tmp_path}/a",
        f"{tmp_path}/b (1)",
    ]


def test_in_a_sweep_a_comma_lists_unless_the_whole_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    combinations, swept = composing.expand(
        understood(["patient.bundle=a,b", "seed=0,1", "out=x"], sweep=True)
    )
    assert swept == ["seed"] and len(combinations) == 2
    combinations, swept = composing.expand(
        understood(["patient.bundle=case (1),case (2),null", "out=my sweep (1)"], sweep=True)
    )
    assert swept == ["patient.bundle"]
    seen = [composing.compose("config", c).settings for c in combinations]
    assert [s.patient.bundle for s in seen] == ["case (1)", "case (2)", None]
    assert {s.out for s in seen} == {"my sweep (1)"}
    assert understood(["title=choice(a,b)"], sweep=True) == ["title=choice(a,b)"]


def test_where_quotes_are_needed_the_ready_line_is_given():
    """Of a key that holds no text nobody can tell what was meant: the line that says it is
    printed."""
    problem = grammar_problem(
        "implant.settings.material=ti (6)", lambda words: shell_line("optimize.py", words)
    )
    assert problem is not None and "HYDRA" not in problem
    line = problem.split("write it as ")[1]
    assert read_back(shlex.split(line)[-1]) == "ti (6)"
    assert grammar_problem("seed=0", shlex.join) is None
    assert "key=value" in (grammar_problem("seed", shlex.join) or "")


@pytest.mark.parametrize("text", AWKWARD)
def test_a_printed_line_can_be_typed(text, tmp_path):
    words = shlex.split(resume_line(tmp_path / text))
    assert words[1].endswith("optimize.py") and "resume=true" in words
    assert read_back(understood([words[-1]])[0]) == str(tmp_path / text)


def test_the_printed_script_is_found_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.path.exists(shlex.split(shell_line("verify.py", []))[1])


def test_a_path_goes_through_hydras_own_compose(tmp_path):
    path = f"{tmp_path}/a (1), {{x}}=y & 'z' ü#$~"
    with initialize_config_dir(version_base="1.3", config_dir=str(composing.CONF)):
        assert (
            compose("config", understood([f"out={path}", f"patient.bundle={path}"])).patient.bundle
            == path
        )
