"""Which version of a category is in use, since when and why, and which were before.

    <models>/<category>/production/<seq>.json

Records are numbered from 1 without gaps, created by put-if-absent and never changed; the one with
the highest number is in use. Of a record only `version` is required, since older releases wrote
less, and unknown keys are passed over: a newer release may say more, and a line must not stop
for that.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from igd import storage
from igd.config import check_name
from igd.errors import ConfigError, LostRaceError, ModelError, ObjectMissingError

FOLDER = "production"
_RECORD = re.compile(r"([0-9]{8})\.json")


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One record: a version was put in use.

    Attributes:
        sequence: 1 for a category's first.
        at: ISO 8601, UTC; empty where the record does not say.
        why: one line for people; empty where the record does not say.
        rolled_back: the version taken out of use, where this was a rollback.
    """

    sequence: int
    version: str
    at: str = ""
    why: str = ""
    rolled_back: str | None = None


def numbers(models_uri: str, category: str) -> list[int]:
    """The numbers of the records, ascending; other files in their folder are left alone."""
    folder = storage.join(models_uri, check_name(category, "category"), FOLDER)
    found = (_RECORD.fullmatch(entry.key) for entry in storage.list_objects(folder))
    return sorted(int(match[1]) for match in found if match)


def newest(models_uri: str, category: str) -> int | None:
    """The number of the record that is in use; None where a category has none."""
    return max(numbers(models_uri, category), default=None)


def history(models_uri: str, category: str) -> list[Promotion]:
    """Every promotion and rollback of a category, oldest first; empty where there is none.

    Raises:
        ModelError: a record is damaged.
    """
    return [read(models_uri, category, sequence) for sequence in numbers(models_uri, category)]


def in_use(models_uri: str, category: str) -> Promotion | None:
    """The record of the version that is in use.

    Raises:
        ModelError: the record is damaged.
    """
    found = numbers(models_uri, category)
    return read(models_uri, category, found[-1]) if found else None


def before(promotions: Sequence[Promotion]) -> str | None:
    """The version that a rollback puts in use.

    The last one that was in use, is another than the present one, and has not been rolled back
    from since it was last promoted. So rollbacks in a row go further back and never return to a
    version that somebody has taken out of use.
    """
    taken_out: set[str] = set()
    for promotion in promotions:
        if promotion.rolled_back is None:
            taken_out.discard(promotion.version)
        else:
            taken_out.add(promotion.rolled_back)
    present = promotions[-1].version if promotions else None
    return next((promotion.version for promotion in reversed(promotions)
                 if promotion.version not in taken_out | {present}), None)


def append(models_uri: str, category: str, version: str, why: str,
           after: int | None = None) -> Promotion:
    """Records a promotion after all there are; with several at once each gets a number.

    Args:
        after: the number that the record is to follow, 0 for none.

    Raises:
        LostRaceError: another record follows `after` already.
    """
    sequence = (max(numbers(models_uri, category), default=0) if after is None else after) + 1
    while (promotion := _create(models_uri, category, sequence, version, why)) is None:
        if after is not None:
            raise LostRaceError(f"category {category!r}: another version was put in use meanwhile; "
                                f"{version} is not; see igd-ray models show {category}")
        sequence += 1
    return promotion


def append_rollback(models_uri: str, category: str, present: Promotion, version: str) -> Promotion:
    """Records that a version takes the place of the present one.

    Raises:
        LostRaceError: the present one no longer is.
    """
    promotion = _create(models_uri, category, present.sequence + 1, version,
                        f"rollback from {present.version}", rolled_back=present.version)
    if promotion is None:
        raise LostRaceError(f"category {category!r}: another version than {present.version} was "
                            "put in use meanwhile; nothing is rolled back; see igd-ray models "
                            f"show {category} and ask again")
    return promotion


def _create(models_uri: str, category: str, sequence: int, version: str, why: str, *,
            rolled_back: str | None = None) -> Promotion | None:
    """Creates a record, or returns None where another has its number."""
    at = datetime.now(UTC).isoformat()
    # The token tells two equal records of one microsecond apart: put_if_absent takes equal bytes
    # for its own.
    document = {"version": version, "at": at, "why": why, "token": uuid.uuid4().hex}
    if rolled_back is not None:
        document["rolled_back"] = rolled_back
    data = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    if not storage.put_if_absent(_uri(models_uri, category, sequence), data):
        return None
    return Promotion(sequence=sequence, version=version, at=at, why=why, rolled_back=rolled_back)


def read(models_uri: str, category: str, sequence: int) -> Promotion:
    """One record.

    Raises:
        ModelError: it is missing or damaged.
    """
    uri = _uri(models_uri, category, sequence)
    try:
        document = json.loads(storage.read_bytes(uri))
        rolled_back = document.get("rolled_back")
        return Promotion(
            sequence=sequence, version=check_name(document["version"], "model version"),
            at=str(document.get("at", "")), why=str(document.get("why", "")),
            rolled_back=None if rolled_back is None else check_name(rolled_back, "model version"))
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{uri} does not name a version ({error}); promote one again") from error
    except ObjectMissingError as error:
        raise ModelError(f"{uri} is missing; promote a version again") from error


def _uri(models_uri: str, category: str, sequence: int) -> str:
    return storage.join(models_uri, category, FOLDER, f"{sequence:08d}.json")
