"""Every command in a code block of README.md and docs/ exists and takes the options it is shown with."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from lvm.commands import evaluate, verbs
from lvm.commands.launch import read_command
from lvm.evaluation.suites import SUITES
from lvm.runtime import build, parse_options
from lvm.runtime.config_files import load_config
from tokenizer.train import read_config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def code_lines(text):
    """Lines of fenced blocks and of blocks indented by four spaces, continued lines joined."""
    fenced = False
    lines = []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands(path):
    """(words of a command from lvm, python or make on); what stands in [brackets] is left out."""
    for line in code_lines(path.read_text()):
        start = re.search(r"(?:^|\s)(lvm [a-z]|python3? (?:-m |train\.py)|make [a-z])", line.partition(" #")[0])
        if start is None or not re.match(r"(\$ |srun |torchrun |[A-Z_]+=\S+ |lvm |python|make )", line):
            continue
        yield [word for word in shlex.split(line[start.start(1) :], comments=True) if word[0] not in "[]"]


def all_commands():
    return [pytest.param(words, id=" ".join(words)) for page in PAGES for words in commands(page)]


def help_text(verb, capsys):
    try:
        importlib.import_module(f"lvm.commands.{verbs()[verb].stem}").main(["--help"])
    except SystemExit as done:
        assert not done.code
    return capsys.readouterr().out


def check_verb(verb, arguments, capsys):
    assert verb in verbs(), f"lvm has no verb {verb}"
    if verb == "launch":  # what is left over belongs to the verb that it starts
        command = read_command(arguments)
        check_verb("train" if command.kind == "sweep" else command.kind, command.arguments, capsys)
        return
    known = help_text(verb, capsys)
    for word in arguments:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}(?![\w-])", known), f"lvm {verb} lacks {word}"
    if verb == "evaluate":
        check_suite(evaluate.make_parser().parse_intermixed_args(arguments))
    overrides = [word for word in arguments if re.match(r"[+~]{0,2}[\w./@]+=", word)]
    if verb in ("train", "demo"):
        check_overrides([*(["experiment=demo"] if verb == "demo" else []), *overrides])


def check_suite(words):
    """Its name, and its options by KEY=VALUE."""
    if words.suite in ("all", "demo"):
        assert not words.options
        return
    assert words.suite in SUITES
    build(importlib.import_module(f"lvm.evaluation.suites.{words.suite}").Options, parse_options(words.options))


def check_overrides(overrides):
    load_config("train", [re.sub("^tokenizer=", "vqgan=", override) for override in overrides])


def test_the_readme_shows_commands():
    assert {words[0] for words in commands(ROOT / "README.md")} >= {"lvm", "make"}


@pytest.mark.parametrize("words", all_commands())
def test_a_shown_command_works(words, tmp_path, capsys):
    match words:
        case ["lvm", verb, *arguments] | ["python" | "python3", "-m", "lvm", verb, *arguments]:
            check_verb(verb, arguments, capsys)
        case ["python" | "python3", "train.py", *overrides]:
            check_overrides(overrides)
        case ["python" | "python3", "-m", "tokenizer.train", *overrides]:
            read_config(overrides)
        case ["python" | "python3", "-m", module, *_]:
            # Looking for pip would take setuptools' distutils from this process, which torch's compiler needs.
            assert module == "pip" or importlib.util.find_spec(module), module
        case ["make", *targets]:
            makefile = (ROOT / "Makefile").read_text()
            for target in (word for word in targets if "=" not in word):
                assert re.search(rf"^{re.escape(target)}:", makefile, re.M), f"make has no target {target}"
            arguments = [value for name, _, value in (word.partition("=") for word in targets) if name == "ARGS"]
            if arguments and "demo" in targets:
                check_verb("demo", shlex.split(arguments[0]), capsys)
        case _:
            pytest.fail(f"no check for {' '.join(words)}")
