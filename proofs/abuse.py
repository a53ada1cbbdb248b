"""Abuses an endpoint over raw sockets, while another client has its images scored.

    python proofs/abuse.py [--only PATTERN]

`igd-ray serve` stands on this machine over small models. Each abuse is judged by what comes back,
by the memory and CPU that it costs Serve's proxy and the ingress, and by how a client from another
address fares meanwhile. What Serve's proxy cannot hold off is done again behind nginx with
deploy/nginx.conf, where there is an nginx. Exits with 1 where something is not as expected, or not
held off by either; results are written to proofs/results/abuse.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from attacks import floods, single
from attacks.attack import Attack
from attacks.reverse import in_front, nginx_binary
from attacks.target import Target, free_port, serving, watched

from igd.cli.output import commit
from igd.config import preset_config
from igd.data.synthetic import generate
from igd.pipelines.category import CategoryTask, train_category

RESULT = Path(__file__).parent / "results" / "abuse.json"
TOKEN = b"0123456789abcdef0123456789abcdef"
OTHERS_S = 2.0
"""How long another client may have to wait for one image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="PATTERN", help="of the names of abuses")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    tree = commit()
    attacks = [attack for attack in (*floods.attacks(), *single.attacks())
               if re.search(asked.only, attack.name)]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="igd") as work, ExitStack() as stack:
        models, picture = _models(work), _picture(work)
        bare = stack.enter_context(serving(models, picture))
        for attack in attacks:
            found.append(_tried(attack, bare))
        if nginx_binary():
            fronted = replace(bare, port=free_port(), tls=True)
            stack.enter_context(in_front(bare.port, fronted.port))
            found += [_tried(attack, fronted) for attack in attacks
                      if attack.bare or attack.name.startswith("nothing")]
        stack.close()
        with serving(models, picture, TOKEN) as guarded:
            assert guarded.scored()  # so that its token is known
            found += [_tried(attack, guarded) for attack in floods.of_strangers()
                      if re.search(asked.only, attack.name)]
    document = {"commit": tree, "cpus": os.cpu_count(), "nginx": nginx_binary() is not None,
                "verdicts": {verdict: sum(one["verdict"] == verdict for one in found)
                             for verdict in ("ok", "needs a reverse proxy", "WRONG")},
                "abuses": found}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(document, indent=1) + "\n")
    sys.exit(1 if document["verdicts"]["WRONG"] else 0)


def _tried(attack: Attack, target: Target) -> dict[str, Any]:
    began = time.monotonic()
    with watched(target) as usage:
        seen = attack.run(target)
    held = (seen.good and usage.failed == 0 and max(usage.others_ms) < 1000 * OTHERS_S
            and max(usage.rss_mb.values()) <= attack.max_rss_mb
            and max(usage.cpu_s.values()) <= attack.max_cpu_s)
    verdict = "ok" if held else (
        "needs a reverse proxy" if attack.bare and not target.tls else "WRONG")
    found = {"abuse": attack.name, "behind": "nginx" if target.tls else None, "by": attack.by,
             "expected": attack.expected, "seen": seen.text, "verdict": verdict,
             "seconds": round(time.monotonic() - began, 1), "others": usage.others,
             "rss_mb": usage.rss_mb, "cpu_s": usage.cpu_s}
    print(json.dumps(found), flush=True)
    return found


def _models(work: str) -> str:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    generate(f"{work}/data", categories=["weave"], train=24, test=2, defective=1, size=64)
    train_category(CategoryTask(data=f"{work}/data", category="weave", models=f"{work}/models",
                                config=preset_config("fast", ["image.size=64",
                                                              "calibration.folds=4"])))
    return f"{work}/models"


def _picture(work: str) -> bytes:
    return min(Path(work, "data", "weave", "test", "good").glob("*.png")).read_bytes()


if __name__ == "__main__":
    main()
