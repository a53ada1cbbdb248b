"""Every error that igd raises on purpose, by who has to act on it.

IgdError
├── ConfigError         an option, a config key or a name           (exit 2)
├── DataError           a dataset or a dump is not what it should be (exit 2)
│   └── ImageError      one image cannot be used; becomes a row      (a reject)
├── ModelError          a bundle is missing, damaged or foreign      (exit 2)
│   ├── NotFittedError  a model was used before it was fitted
│   └── DivergedError   training met a NaN or a collapsed Gaussian
├── RunHeldError        the audit refused to publish                 (exit 4)
├── LostRaceError       another published or promoted meanwhile      (exit 3)
└── StorageError        storage or cluster out of reach              (exit 5)
    ├── ObjectMissingError   the object is not there
    ├── ObjectChangedError   it is no longer the version that was listed
    └── ObjectDeniedError    the storage refuses access to it

A message says what was wrong, quotes the value, says what was expected and what to do.
All survive pickling, since they cross Ray's process borders.
"""

from __future__ import annotations


class IgdError(Exception):
    """Anything igd raises on purpose."""

    exit_code = 1


class ConfigError(IgdError):
    """An option, a config key or a name that cannot be used."""

    exit_code = 2


class DataError(IgdError):
    """A dataset or a dump that is not what it should be."""

    exit_code = 2


class ImageError(DataError):
    """One image that cannot be used.

    Args:
        reason: a code of `igd.records.Reason`.
        detail: one line for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = str(reason)
        self.detail = detail

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class ModelError(IgdError):
    """A bundle that is missing, damaged or foreign."""

    exit_code = 2


class NotFittedError(ModelError):
    """A model was used before it was fitted."""


class DivergedError(ModelError):
    """Training met a NaN or a collapsed Gaussian; the message names the step and the term."""


class RunHeldError(IgdError):
    """The audit found the accounting wrong, so nothing was published."""

    exit_code = 4


class LostRaceError(IgdError):
    """Another published the same date, or put a model in use, while this one was at work."""

    exit_code = 3


class StorageError(IgdError):
    """Storage or the cluster cannot be reached, or refuses."""

    exit_code = 5


class ObjectMissingError(StorageError):
    """An object or a file is not there."""


class ObjectChangedError(StorageError):
    """An object is no longer the version that was listed."""


class ObjectDeniedError(StorageError):
    """The storage refuses access to an object."""
