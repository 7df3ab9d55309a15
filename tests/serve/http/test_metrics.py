"""The numbers a dashboard reads."""

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "say hello"}]}


def test_metrics_count_answers_and_ask_the_engine(start):
    running = start()
    running.call("/v1/chat/completions", CHAT)
    running.call("/v1/chat/completions", {**CHAT, "max_tokens": 1})
    lines = running.call("/metrics")[2].decode().splitlines()
    label = 'model_name="fake"'
    for line in (
        f"danlu:num_requests_waiting{{{label}}} 2",
        f"danlu:generation_tokens_total{{{label}}} 4",
        f'danlu:request_success_total{{{label},finished_reason="stop"}} 1',
        f'danlu:request_success_total{{{label},finished_reason="length"}} 1',
        f'danlu:http_responses_total{{{label},status="200"}} 2',
        f"danlu:time_to_first_token_seconds_count{{{label}}} 2",
        f'danlu:iteration_batch_size_bucket{{{label},le="2"}} 5',
        f"danlu:iteration_batch_size_sum{{{label}}} 11",
        f"danlu:iteration_batch_size_count{{{label}}} 7",
    ):
        assert line in lines
