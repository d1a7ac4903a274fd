"""The one exception type whose message is meant for the user's eyes, and what to say where memory does not suffice."""

import shlex

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and what to do; the CLI prints it and exits with 2."""


def one_line(error: BaseException) -> str:
    """What another library's error says, short; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def typed_line(error: BaseException) -> str:
    """:func:`one_line` behind the error's type, which says what a message such as ``'root'`` does not."""
    return f"{type(error).__name__}: {one_line(error)}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch says it in a RuntimeError on the CPU, in one of its own on a GPU."""
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in NO_MEMORY)


def out_of_memory_advice(error: Exception, arguments: list[str], counted: str = "") -> str:
    """One line: what was asked for, what a step needs and the command that counts it, the keys that need less.

    Args:
        arguments: of the verb: the configuration and its overrides.
        counted: what ``plan`` counts for them.
    """
    asked = one_line(error)
    counted = f" {counted}." if counted else ""
    return (
        f"memory does not suffice: {asked}.{counted} What a step needs, and of what: pi05-rl plan "
        f"{shlex.join(arguments)}. Less needs: --policy.gradient_checkpointing=true, --policy.dtype=bfloat16, "
        "a smaller --batch_size with more --policy.gradient_accumulation_steps, --policy.train_expert_only=true, or "
        "LoRA (--peft.method_type=LORA --peft.r=16)"
    )


class ConfigError(UserError):
    """A configuration that cannot be read, or says something impossible."""


class DatasetError(UserError):
    """A dataset that is missing, incomplete or does not fit the policy."""
