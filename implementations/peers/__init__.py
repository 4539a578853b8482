"""Other people's stacks, each a file as for `python -m implementations check`: the library, and what was bridged."""
