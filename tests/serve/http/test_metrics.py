"""The numbers a dashboard reads."""

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say hello"}]}


def test_metrics_count_answers_and_ask_the_engine(start):
    running = start()
    running.call("/v1/chat/completions", CHAT)
    running.call("/v1/chat/completions", {**CHAT, "max_tokens": 1})
    running.call("/v1/chat/completions", {**CHAT, "model": 'a"b'})
    lines = running.call("/metrics")[2].decode().splitlines()
    label = 'model_name="fake"'
    for line in (
        f"danlu:num_requests_running{{{label}}} 1",
        f"danlu:num_requests_waiting{{{label}}} 2",
        f"danlu:kv_cache_usage_perc{{{label}}} 0.25",
        f"danlu:prefix_cache_queries_total{{{label}}} 8",
        f"danlu:prefix_cache_hits_total{{{label}}} 5",
        f"danlu:prompt_tokens_total{{{label}}} 8",
        f"danlu:generation_tokens_total{{{label}}} 4",
        f"danlu:num_preemptions_total{{{label}}} 6",
        f'danlu:request_success_total{{{label},finished_reason="stop"}} 1',
        f'danlu:request_success_total{{{label},finished_reason="length"}} 1',
        'danlu:http_responses_total{status="200"} 2',
        'danlu:http_responses_total{status="404"} 1',
        "danlu:engine_restarts_total 1",
        f'danlu:engine_seconds_total{{{label},part="model"}} 1.5',
        f"danlu:time_to_first_token_seconds_count{{{label}}} 2",
        f"danlu:inter_token_latency_seconds_count{{{label}}} 4",
        f"danlu:e2e_request_latency_seconds_count{{{label}}} 2",
        f'danlu:request_queue_time_seconds_bucket{{{label},le="0.1"}} 3',
        f'danlu:request_queue_time_seconds_bucket{{{label},le="1"}} 4',
        f'danlu:request_queue_time_seconds_bucket{{{label},le="+Inf"}} 5',
        f"danlu:request_queue_time_seconds_sum{{{label}}} 2.5",
        f'danlu:iteration_batch_size_bucket{{{label},le="2"}} 5',
        f"danlu:iteration_batch_size_sum{{{label}}} 11",
        f"danlu:iteration_batch_size_count{{{label}}} 7",
    ):
        assert line in lines
    assert 'a"b' not in "".join(lines)


def test_every_family_is_described_once(running):
    lines = running.call("/metrics")[2].decode().splitlines()
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families)) == sum(line.startswith("# HELP") for line in lines)


def test_a_failed_answer_is_counted_as_an_error(start):
    running = start()
    running.engine.is_full = True
    running.call("/v1/chat/completions", CHAT)
    text = running.call("/metrics")[2].decode()
    assert 'danlu:request_success_total{model_name="fake",finished_reason="error"} 1' in text
