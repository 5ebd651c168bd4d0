"""reward.url: null, one address or several, and what is no address."""

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose, from_yaml, to_yaml
from nemo_simplerl.config.rules.check import check


def problems_of(url: str) -> list[str]:
    return check(compose(["experiment=quickstart", f"reward.url={url}"]), None, None)


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("null", None),
        ("http://127.0.0.1:8471", "http://127.0.0.1:8471"),
        ("https://grader.example/prefix/", "https://grader.example/prefix/"),
        ("http://[::1]:8471", "http://[::1]:8471"),
        ("[http://a:1,http://b:1]", ["http://a:1", "http://b:1"]),
    ],
)
def test_an_address_or_several_or_none(url, read):
    quoted = f"'{url}'" if "::" in url else url
    config = compose(["experiment=quickstart", f"reward.url={quoted}"])
    assert config.reward.url == read and check(config, None, None) == []
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8471", "is no http:// or https:// URL"),
        ("ftp://a:1", "is no http:// or https:// URL"),
        ("http://", "is no http:// or https:// URL"),
        ("'http://a b:1'", "is no http:// or https:// URL"),
        ("http://a:99999", "is no URL"),
        ("http://a:b", "is no URL"),
        ("http://me:secret@a:1", "belongs in SIMPLERL_REWARD_TOKEN"),
        ("http://a:1/grade", "goes on after the server's address"),
        ("'http://a:1?token=x'", "goes on after the server's address"),
        ("[http://a:1,b]", "reward.url='b' is no http:// or https:// URL"),
        ("[]", "reward.url=[] names no server"),
    ],
)
def test_what_is_no_address_is_told_with_one_that_is(url, told):
    (problem,) = problems_of(url)
    assert told in problem and "http://HOST:PORT" in problem


def test_a_number_is_no_address():
    with pytest.raises(ConfigErrors, match="reward.url=8471 is an integer; accepted: a string or a list"):
        compose(["experiment=quickstart", "reward.url=8471"])
