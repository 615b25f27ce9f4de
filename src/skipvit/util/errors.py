"""The ways in which a command ends for a reason that a person can act on."""


class UsageError(Exception):
    """The person asked for the impossible (a key, a path, a shape). One line: what, where, what to do. Exit code 2."""


class RunError(Exception):
    """The run failed on its data or machine (a corrupt file, too few devices). One line, as above. Exit code 1."""


class DamagedRecord(RunError):
    """An image that cannot be read because its place in a larger file is damaged."""


class Stopped(Exception):
    """The run was asked to stop, by SIGTERM or Ctrl-C, and has saved its state. One line: how to go on. Exit code 3."""
