"""`implementations/checkpoints/checkpoint.py` by the name that it had before the rooms: programs of users have it."""

from implementations.checkpoints.checkpoint import stack_names, stack_params, unstack_names, unstack_params

__all__ = ["stack_names", "stack_params", "unstack_names", "unstack_params"]
