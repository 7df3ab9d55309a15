"""Keys, foreign pages and rebound names."""

TEXT = {"model": "fake", "prompt": "say hello"}


def test_nothing_asks_for_a_key_unless_one_is_set(running):
    assert running.call("/v1/models")[0] == 200


def test_with_a_key_only_the_page_and_the_probes_are_open(start):
    running = start(api_key="sesame-1")
    for path in ("/", "/page.js", "/health", "/ready"):
        assert running.call(path)[0] == 200
    for path in ("/v1/models", "/metrics", "/v1/chat/completions", "/elsewhere"):
        status, error = running.error_of(path, headers={"authorization": "Bearer sesame-2"})
        assert (status, error["code"], error["type"]) == (401, "invalid_api_key", "authentication_error")
    assert running.error_of("/v1/models")[0] == 401
    assert running.call("/v1/models", headers={"authorization": "bearer sesame-1"})[0] == 200


def test_pages_of_other_sites_and_rebound_names_are_refused(running):
    status, error = running.error_of("/v1/models", headers={"host": "evil.example"})
    assert (status, error["code"]) == (403, "host_not_allowed")
    status, error = running.error_of("/v1/completions", TEXT, headers={"origin": "https://evil.example"})
    assert (status, error["code"]) == (403, "cross_origin")
    own = {"origin": running.url, "host": running.url.removeprefix("http://")}
    assert running.call("/v1/completions", TEXT, headers=own)[0] == 200
    assert running.error_of("/v1/models", headers={"host": "[::1"})[0] == 403


def test_a_proxys_name_is_let_in_when_configured(start):
    running = start(allowed_hosts=("llm.example",))
    headers = {"host": "llm.example", "origin": "https://llm.example"}
    assert running.call("/v1/completions", TEXT, headers=headers)[0] == 200
