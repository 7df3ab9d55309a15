"""Settings of the server."""

import pytest

from danlu.core.errors import ConfigError
from danlu.serve.http.config import HttpConfig


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"port": 70000}, "port is 70000"),
        ({"host": ""}, "host is empty"),
        ({"api_key": ""}, "api_key is empty or has characters outside"),
        ({"max_body_bytes": 0}, "max_body_bytes is 0"),
        ({"ping_s": 0.0}, "ping_s is 0.0"),
        ({"drain_s": -1.0}, "drain_s is -1.0"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, text):
    with pytest.raises(ConfigError, match=text):
        HttpConfig(**settings)


def test_the_key_is_not_in_the_configs_text():
    assert "sesame" not in repr(HttpConfig(api_key="sesame"))
