"""The exceptions that a user is meant to read."""


class UserError(Exception):
    """A mistake of the user's, told in one line: the key, its value, what would be accepted."""


class Busy(UserError):
    """Another process is at work in the directory; nothing is wrong."""


class StorageError(UserError):
    """A file cannot be written: the disk is full, or read-only, or not ours. What was complete stays so."""


class Interrupted(BaseException):
    """The run was asked to stop and did, in a state that it goes on from. Not an error, nobody catches it."""

    def __init__(self, signal: int, step: int = 0):
        super().__init__(signal, step)
        self.signal, self.step = signal, step
