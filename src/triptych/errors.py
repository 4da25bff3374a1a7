"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake of the user's, told in one line: the key, its value, what would be accepted."""
