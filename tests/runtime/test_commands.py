"""`lvm <verb>`: lazy verbs, help without imports, one-line errors and exit codes."""

import subprocess
import sys

import pytest

from lvm import commands


@pytest.fixture
def verbs(tmp_path, monkeypatch):
    """Three verbs in a folder of their own, in place of the real ones."""
    (tmp_path / "say_hello.py").write_text(
        '"""Greet someone.\n\nMore."""\n\nimport argparse\n\n\ndef main(argv):\n'
        "    parser = argparse.ArgumentParser(description=__doc__)\n    parser.add_argument('name')\n"
        "    parser.add_argument('--times', type=int, default=1)\n"
        "    given = parser.parse_args(argv)\n    print(f'hello {given.name}')\n    return given.times - 1\n"
    )
    (tmp_path / "fail.py").write_text(
        '"""Fail."""\nfrom lvm.runtime import UserError\n\n\nclass Core(ValueError):\n    user_error = True\n\n\n'
        "def main(argv):\n    if argv == ['bug']:\n        raise KeyError('bug')\n"
        "    if argv == ['disk']:\n        raise OSError(28, 'No space left on device', 'x.npy')\n"
        "    raise (Core if argv else UserError)('a.png\\nis broken; remove it')\n"
    )
    (tmp_path / "broken.py").write_text('"""Not importable."""\nraise RuntimeError("imported")\n')
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(commands, "__path__", [str(tmp_path)])
    yield tmp_path
    for name in ("say_hello", "fail", "broken"):
        sys.modules.pop(f"lvm.commands.{name}", None)


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as left:
        commands.main(list(argv))
    return left.value.code


def test_lvm_alone_lists_the_verbs_without_importing_them(verbs, capsys):
    assert exit_code() == 0
    listed = capsys.readouterr().out
    assert "say-hello  Greet someone." in listed and "broken     Not importable." in listed
    assert "lvm.commands.broken" not in sys.modules


def test_a_verb_gets_its_arguments_and_gives_the_exit_code(verbs, capsys):
    assert exit_code("say-hello", "you") == 0
    assert capsys.readouterr().out == "hello you\n"
    assert exit_code("say-hello", "you", "--times", "4") == 3


def test_wrong_arguments_exit_2_and_name_the_verb(verbs, capsys):
    assert exit_code("say-hello") == 2
    assert "lvm say-hello: error: the following arguments are required: name" in capsys.readouterr().err
    assert exit_code("say-hello", "you", "--tims=3x") == 2


def test_an_unknown_verb_names_the_nearest(verbs, capsys):
    assert exit_code("sayhello") == 2
    assert capsys.readouterr().err == "error: lvm has no verb 'sayhello'; did you mean 'say-hello'?\n"
    assert exit_code("zzz") == 2
    assert "known: broken, fail, say-hello" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["core"]])
def test_an_error_of_the_user_is_one_line_and_exit_2(verbs, capsys, arguments):
    assert exit_code("fail", *arguments) == 2
    assert capsys.readouterr().err == "error: a.png is broken; remove it\n"


def test_a_full_disk_is_one_line_that_names_the_file(verbs, capsys):
    assert exit_code("fail", "disk") == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error and "x.npy" in error and error.count("\n") == 1


def test_a_bug_keeps_its_traceback(verbs):
    with pytest.raises(KeyError):
        commands.main(["fail", "bug"])


def test_the_real_verbs_each_have_a_line_of_help():
    assert all(commands.help_line(file).strip(".") for file in commands.verbs().values())


def test_python_m_lvm_is_the_same_and_imports_no_torch():
    script = (
        "import runpy, sys\ntry: runpy.run_module('lvm', run_name='__main__')\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("lvm <verb>") and done.stdout.endswith("False\n")
