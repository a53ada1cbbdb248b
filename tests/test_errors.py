"""The error tree: exit codes, and the trip through pickle that Ray makes with every error."""

from __future__ import annotations

import copy
import pickle

import pytest

import igd.serve.catalogue  # one of its errors belongs to the tree
from igd import errors
from igd.errors import IgdError, ImageError
from igd.records import Reason


def tree(cls: type[IgdError]) -> list[type[IgdError]]:
    return [cls] + [below for child in cls.__subclasses__() for below in tree(child)]


def made(cls: type[IgdError]) -> IgdError:
    if issubclass(cls, ImageError):
        return cls(Reason.TRUNCATED, "ends at byte 7")
    return cls("bottle/000.png: expected 3 channels")


@pytest.mark.parametrize("cls", tree(IgdError), ids=lambda cls: cls.__name__)
def test_an_error_survives_pickle_whole(cls: type[IgdError]) -> None:
    error = made(cls)
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(back) is cls
        assert str(back) == str(error) and str(error)
        assert back.exit_code == error.exit_code
        assert vars(back) == vars(error)


def test_every_error_is_drawn_in_the_tree() -> None:
    assert igd.serve.catalogue.UnknownCategoryError in tree(IgdError)
    for cls in tree(IgdError):
        if cls.__module__ == errors.__name__:
            assert cls.__name__ in str(errors.__doc__)


@pytest.mark.parametrize(("cls", "code"), [
    (errors.IgdError, 1), (errors.ConfigError, 2), (errors.ImageError, 2), (errors.DataError, 2),
    (errors.NotFittedError, 2), (errors.DivergedError, 2), (errors.LostRaceError, 3),
    (errors.RunHeldError, 4), (errors.ObjectDeniedError, 5), (errors.ObjectChangedError, 5)])
def test_exit_codes_are_those_of_design(cls: type[IgdError], code: int) -> None:
    assert made(cls).exit_code == code


def test_an_image_error_carries_its_reason_as_a_plain_code() -> None:
    error = pickle.loads(pickle.dumps(ImageError(Reason.CRC, "chunk IDAT")))
    assert (type(error.reason), error.reason, error.detail) == (str, "crc", "chunk IDAT")
    assert str(error) == "crc: chunk IDAT"
