"""What every long job needs: atomic files, lease, checkpoints, stop signals, metrics, keyed noise, strict configs."""

from lvm.runtime.configs import build, config_folder, parse_options
from lvm.runtime.errors import UserError, exit_with_one_line, is_user_error
from lvm.runtime.files import atomic_folder, atomic_path, atomic_write, read_json, sha256_file, write_json

__all__ = [
    "UserError",
    "atomic_folder",
    "atomic_path",
    "atomic_write",
    "build",
    "config_folder",
    "exit_with_one_line",
    "is_user_error",
    "parse_options",
    "read_json",
    "sha256_file",
    "write_json",
]
