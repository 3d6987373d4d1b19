"""`python -m lvm <verb>`: the same as `lvm <verb>`."""

from lvm.commands import main

if __name__ == "__main__":
    main()
