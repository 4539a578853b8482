"""`python -m implementations [command] [options]`: no command means the comparison."""

from __future__ import annotations

import sys

from implementations import capabilities, compare

COMMANDS = {"compare": compare.main, "capabilities": capabilities.main}


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    return compare.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
