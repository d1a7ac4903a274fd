"""The one exception type whose message is meant for the user's eyes."""


class UserError(Exception):
    """Bad input. The message says what is wrong, where, and what to do; the CLI prints it and exits with 2."""
