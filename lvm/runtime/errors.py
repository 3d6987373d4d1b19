"""Errors that are the user's to mend: one line that names the file or value and the remedy, and exit code 2.

The model file and the tokenizer's core import nothing of ours; they raise their own `ValueError` subclasses
carrying `user_error = True`, and `exit_with_one_line` treats those the same.
"""

import errno
import os
import sys
from collections.abc import Callable

# A full disk or a folder one may not write to: the operating system's own line names the file.
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class UserError(ValueError):
    """Something the user can mend. The message is one line: file, value, remedy."""

    user_error = True


def is_user_error(error: BaseException) -> bool:
    return getattr(error, "user_error", False) is True


def exit_with_one_line(main: Callable[[], object]) -> None:
    """Run `main`; a user error becomes one line on stderr and exit code 2 (or its own), Ctrl-C exit code 130."""
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `lvm ... | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if not is_user_error(error) and getattr(error, "errno", None) not in _MACHINE_ERRORS:
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)
