"""The results tables of the README, from benchmarks/results/.

    python benchmarks/table.py            prints it
    python benchmarks/table.py --write    puts it into README.md, between its two markers
"""

from __future__ import annotations

import sys

from accuracy_tables import accuracy, ladder, nets, one_class, reduced
from cells import ROOT, exists
from cost_tables import archives, batch, containers, endpoint, growth, queue, spine

BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def table() -> str:
    """The sections whose results are there."""
    fast = ["accuracy-bottle-fast", "accuracy-tiles-fast"]
    small = ["accuracy-bottle-small", "accuracy-tiles-small"]
    confirmation = [f"accuracy-reduced-{preset}" for preset in ("fast", "small")]
    sections = [(accuracy, fast + small), (reduced, confirmation), (ladder, fast),
                (one_class, ["fashion-mnist"]), (nets, ["nets"]),
                (spine, ["spine-fast", "spine-small", "spine-tiles"]), (queue, ["train-all"]),
                (batch, ["batch"]), (containers, ["containers"]), (archives, ["archives"]),
                (growth, ["growth"]), (endpoint, ["endpoint"])]
    return "\n".join(section() for section, names in sections if all(map(exists, names)))


def main() -> None:
    if "--write" not in sys.argv:
        print(table())
        return
    readme = ROOT / "README.md"
    head, rest = readme.read_text().split(BEGIN)
    readme.write_text(head + BEGIN + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
