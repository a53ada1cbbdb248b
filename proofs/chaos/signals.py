"""Kind `signal`: the driver is told to stop, once and twice, at a random moment of its work."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

from chaos.commands import Attempt
from chaos.found import Found
from chaos.night import Night

STOPS_WITHIN_S = 30
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def told(night: Night, rounds: int) -> Iterator[Found]:
    """It ends soon, with the signal's code; the next one finishes."""
    for number in range(rounds):
        for sign, code in CODES.items():
            for times in (1, 2):
                order = night.order("signal")
                name = f"{sign.name} {('once', 'twice')[times - 1]} {number}"
                with night.case("signal", name, order) as found:
                    attempt = night.give(order)
                    wait_for_request(night, attempt)
                    time.sleep(night.dice.uniform(0, night.run_s / 2))
                    began = time.monotonic()
                    for _ in range(times):
                        attempt.process.send_signal(sign)
                        time.sleep(0.5)
                    got = night.end(attempt, found, 2 * STOPS_WITHIN_S)
                    took = found.notes["stopped_after_s"] = round(time.monotonic() - began, 1)
                    found.expect(got == code and took <= STOPS_WITHIN_S,
                                 f"exit code {got} after {took} s: {attempt.said}")
                    night.finish(order, found)
                yield found


def wait_for_request(night: Night, attempt: Attempt) -> None:
    """Until the command does something; before, it is Python that is told."""
    while attempt.running and len(night.proxy.log) == attempt.first_request:
        time.sleep(0.05)
