"""The one exception that means "the user's input is wrong": the entries print it and exit with code 2."""


class UserError(ValueError):
    """Bad input: one clear message that says what was given, what is allowed and what to do."""
