"""A process that polls a date's published rows, as an analyst would, until it is ended.

    PYTHONPATH=proofs python -m chaos.reader OUT DATE FILE

Each change that it sees becomes a line of FILE: the keys in sight, or what could not be read. The
AWS_* in the environment lead to S3.
"""

from __future__ import annotations

import json
import os
import sys
import time

from chaos.accounting import keys_in
from chaos.places import Place

EVERY_S = 0.25


def main(out: str, date: str, file: str) -> None:
    place = Place(uri=out, settings={
        name: value for name, value in os.environ.items() if name.startswith("AWS_")})
    seen: int | None = None
    with open(file, "w") as lines:
        while True:
            try:
                version = place.version("scores")
                if version != seen:
                    print(json.dumps({"keys": keys_in(place, date)}), file=lines, flush=True)
                    seen = version
            except Exception as error:  # whatever a reader runs into is what is looked for
                print(json.dumps({"error": repr(error)[:300]}), file=lines, flush=True)
            time.sleep(EVERY_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
