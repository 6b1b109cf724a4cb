"""A process of its own that asks a server: python asking_client.py BASE_URL CACHE COUNT [setting=value ...]."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from lab.judging.judges import JudgeRequest, OpenAIJudge, ask_all


def main(base_url: str, cache: str, count: str, *settings: str) -> None:
    changes = {key: json.loads(value) for key, value in (word.split("=", 1) for word in settings)}
    judge = OpenAIJudge(**{"base_url": base_url, "model": "judge", "backoff": 0.0, **changes})
    judge.cache = Path(cache)
    judge.open(ExitStack())
    asked = [JudgeRequest(({"role": "user", "content": f"question {n}"},), 5, 0.0) for n in range(int(count))]
    try:
        print(json.dumps([reply.text for reply in ask_all(judge, asked)]))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
