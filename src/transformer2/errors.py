"""Typed errors a user can act on: one line that names the thing and the remedy."""


class UserError(Exception):
    """Bad input or an impossible request. The command line prints it as one line and exits with code 2."""


class ConfigError(UserError, ValueError):
    """A config file, key or value that cannot be used."""


class DataError(UserError, ValueError):
    """A data set, row or field that cannot be used."""


class ExpertError(UserError, ValueError):
    """An expert folder that is damaged, foreign, or does not fit the model."""


class BasisError(UserError, ValueError):
    """A basis that cannot be computed or read."""
