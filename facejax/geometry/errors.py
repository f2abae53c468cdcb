"""The error that a person sees when what they gave cannot be used."""


class InputError(ValueError):
    """Bad input, in one sentence: what was expected, what came, what to do. The command prints it and exits with 2."""
