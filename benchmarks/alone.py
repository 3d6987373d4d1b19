"""What benchmarks that are run as modules share: their command line, and measuring in a process of its own."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lvm.commands._options import options_from
from lvm.runtime import UserError, exit_with_one_line, write_json

T = TypeVar("T")


def run_alone(options_type: type[T], run: Callable[[T], dict[str, Any]]) -> None:
    """KEY=VALUE arguments as `options_type`; what `run` finds goes to the file of its `json`, if one is named."""

    def main() -> None:
        options: Any = options_from(options_type, sys.argv[1:])
        found = run(options)
        if options.json:
            kept = {key: value for key, value in found.get("options", {}).items() if key != "json"}
            write_json(options.json, {**found, "options": kept} if kept else found)

    exit_with_one_line(main)


def in_own_process(module: str, function: str, *arguments: Any) -> Any:
    """What `function` of benchmarks.`module` returns, as JSON, there: its peak of memory is nobody else's."""
    code = f"import sys, json; from benchmarks.{module} import {function} as f; "
    code += "print(json.dumps(f(*json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if ended.returncode:
        raise UserError(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "the measurement failed")
    return json.loads(ended.stdout.splitlines()[-1])


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
