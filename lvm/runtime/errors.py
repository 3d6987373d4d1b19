"""Errors that are the user's to mend: one line that names the file or value and the remedy, and exit code 2.

The model file and the tokenizer's core import nothing of ours; they raise their own `ValueError` subclasses
carrying `user_error = True`, and `exit_with_one_line` treats those the same.
"""

import atexit
import contextlib
import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

# A full disk or a folder one may not write to: the operating system's own line names the file.
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class UserError(ValueError):
    """Something the user can mend. The message is one line: file, value, remedy."""

    user_error = True


def is_user_error(error: BaseException) -> bool:
    return getattr(error, "user_error", False) is True


_one_of_many = False


def is_one_of_many_ranks() -> None:
    """From now on `exit_with_one_line` leaves by `end_rank`; said by whoever makes a process group of many ranks."""
    global _one_of_many
    _one_of_many = True


def end_rank(code: int = 0) -> NoReturn:
    """End this process as usual, after its threads and with what was registered to happen at its end, but without
    tearing the interpreter down.

    A thread of gloo takes Python's lock to let go of the tensors of a collective that is over. Where that falls into
    the interpreter's own end the process aborts (SIGABRT), though all its work is done and saved.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # joins all but daemons, pools told to end: the interpreter's way
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def exit_with_one_line(main: Callable[[], object]) -> None:
    """Run `main`; a user error becomes one line on stderr and exit code 2 (or its own), Ctrl-C exit code 130."""
    try:
        code = exit_code_of(main)
    except Exception:
        if not _one_of_many:
            raise
        traceback.print_exc()
        code = 1
    if _one_of_many:
        end_rank(code)
    sys.exit(code)


def exit_code_of(main: Callable[[], object]) -> int:
    """`exit_with_one_line` without the exit, for who has work left afterwards."""
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `lvm ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if not is_user_error(error) and getattr(error, "errno", None) not in _MACHINE_ERRORS:
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return int(getattr(error, "exit_code", 2))
    return code if isinstance(code, int) else 0
