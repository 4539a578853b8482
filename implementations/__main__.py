"""`python -m implementations [command] [options]`: no command means the comparison."""

from __future__ import annotations

import pkgutil
import sys

# By name: what draws the figures of a comparison takes half a second and 40 MB, which other commands do without.
COMMANDS = {
    "compare": "implementations.compare:main",
    "bench": "implementations.measuring.bench_command:main",
    "capabilities": "implementations.capabilities:main",
    "check": "implementations.check.command:main",
    "peers": "implementations.check.peers_command:main",
    "devices": "implementations.devices.command:main",
    "versions": "implementations.check.versions_command:main",
    "embed": "implementations.minilm.embed_command:main",
    "stack-checkpoint": "implementations.checkpoints.checkpoint_command:stack_main",
    "unstack-checkpoint": "implementations.checkpoints.checkpoint_command:unstack_main",
}


def main(arguments: list[str]) -> int:
    command, rest = "compare", arguments
    if arguments and arguments[0] in COMMANDS:
        command, *rest = arguments
    return int(pkgutil.resolve_name(COMMANDS[command])(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
