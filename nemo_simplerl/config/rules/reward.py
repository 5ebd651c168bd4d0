"""Rules of `reward`."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from nemo_simplerl.config.schema import Config

_OVERLONG_PENALTY = 1.0  # of conf/reward/default.yaml, where nobody asked for another


def rewards_are_ordered(config: Config) -> Iterator[str]:
    reward = config.reward
    if reward.function is None and not reward.correct > reward.incorrect >= reward.no_answer:
        yield (
            f"reward.correct={reward.correct}, reward.incorrect={reward.incorrect}, "
            f"reward.no_answer={reward.no_answer} would teach wrong answers. "
            "Needed: correct > incorrect >= no_answer, such as 1.0, -0.5, -1.0."
        )


def overlong_responses_lose_something(config: Config) -> Iterator[str]:
    buffer, penalty = config.reward.overlong_buffer_tokens, config.reward.overlong_penalty
    limit = config.rollout.max_response_tokens
    if buffer is None:
        if penalty != _OVERLONG_PENALTY:
            yield (
                f"reward.overlong_penalty={penalty} has no effect with reward.overlong_buffer_tokens=null, under which "
                f"no response loses anything for its length. Give reward.overlong_buffer_tokens, such as "
                f"{max(limit // 5, 1)}, or leave the penalty at {_OVERLONG_PENALTY}."
            )
    elif buffer >= limit:
        yield (
            f"reward.overlong_buffer_tokens={buffer} leaves no response of rollout.max_response_tokens={limit} without "
            f"a loss: it would teach to answer in few tokens. Set it below {limit}, such as {max(limit // 5, 1)}."
        )
    elif penalty == 0:
        yield (
            "reward.overlong_penalty=0.0 takes nothing from the responses that reward.overlong_buffer_tokens="
            f"{buffer} names. Give a penalty above 0: {_OVERLONG_PENALTY}, which goes with "
            "reward.overlong_buffer_tokens=null too."
        )


def reward_urls_are_urls(config: Config) -> Iterator[str]:
    if config.reward.url == []:
        yield "reward.url=[] names no server. Give reward.url=http://HOST:PORT, or reward.url=null to grade here."
    for url in [config.reward.url] if isinstance(config.reward.url, str) else config.reward.url or []:
        if problem := _url_problem(url):
            yield f"reward.url={url!r} {problem}. Give the address of a reward server, http://HOST:PORT."


def _url_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (it is checked when read)
    except ValueError as error:
        return f"is no URL ({error})"
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        return "is no http:// or https:// URL"
    if parts.username is not None or parts.password is not None:
        return "holds a password, which the run directory would keep; the token belongs in SIMPLERL_REWARD_TOKEN"
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/grade"):
        return "goes on after the server's address"
    return None
