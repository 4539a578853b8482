"""`implementations/checkpoints/checkpoint_files.py` by the name that it had before the rooms: programs have it."""

from implementations.checkpoints.checkpoint_files import stack_file, unstack_file

__all__ = ["stack_file", "unstack_file"]
