"""What came of a case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chaos.accounting import METRICS


@dataclass(kw_only=True)
class Found:
    """Metrics, exit codes and whatever is not as it should be.

    Attributes:
        redone: finished shards that were scored again, as far as the proxy sees.
        kills: processes and nodes that were killed.
    """

    kind: str
    case: str
    exit_codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    metrics: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    redone: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        return self.skipped is not None or (
            not self.problems and all(self.metrics.get(name) == 0 for name in METRICS))

    def expect(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)
