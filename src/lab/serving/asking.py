"""Ask many things at once, paid for: what is under way when something fails is waited for, and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from lab.serving.endpoint import EndpointError, RefusedError
from lab.serving.ledger import BudgetError
from lab.serving.reply import Reply

# The share of replies that may be unusable or name no verdict; with more, the mean of the others would mislead.
MOST_UNUSABLE = 0.05


def ask_each(
    ask: Callable[[str], Reply], items: Sequence[str], *, workers: int, strict: bool, what: str
) -> Iterator[tuple[str, Reply]]:
    """Yield (item, reply) as they come; one that the server refuses has a problem, like one that is unusable.

    As soon as more than MOST_UNUSABLE of all have a problem (strict: one), or on an error or an interruption,
    nothing more is sent. what: the plural of what is asked for, in messages.
    """
    kept: list[str] = []
    problems: list[str] = []
    stop = threading.Event()
    allowed = 0 if strict else int(MOST_UNUSABLE * len(items))

    def one(item: str) -> Reply | None:
        if stop.is_set():
            return None
        try:
            reply = ask(item)
            kept.append(item)
        except RefusedError as error:
            reply = Reply("", problem=str(error))
        except BaseException:
            stop.set()
            raise
        problems.extend([reply.problem] if reply.problem else [])
        if len(problems) > allowed:
            stop.set()
        return reply

    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(one, item): item for item in items}
            try:
                for future in as_completed(futures):
                    reply = future.result()
                    if len(problems) > allowed:
                        raise EndpointError(_unusable(problems, len(items), what, strict))
                    if reply is not None:
                        yield futures[future], reply
            finally:
                stop.set()
    except (EndpointError, BudgetError) as error:
        left = f"{len(kept)} of {len(items)} {what} are kept; the same command goes on from there"
        raise type(error)(f"{error}. {left}") from None


def _unusable(problems: Sequence[str], total: int, what: str, strict: bool) -> str:
    share = "unusable=error allows none" if strict else f"over {MOST_UNUSABLE:.0%}"
    return f"{len(problems)} of {total} {what} are unusable, {share}: {problems[-1]}"
