"""Every family's way of writing a conversation, rendered and masked as transformers does it.

The templates are written here in the structure of their families: who is named how, where special tokens stand, what is
stripped, what is refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from danlu.core.errors import RequestError
from danlu.core.records import Message
from danlu.text.bpe import CHATML
from danlu.text.chat import ChatFormat
from danlu.text.tokenizer import TextTokenizer
from tests.text.tokenizers import sentencepiece_bpe
from tests.tiny import make_tokenizer


@dataclass(frozen=True)
class Family:
    """How one family chats."""

    template: str
    tokens: tuple[str, ...]
    begin: str | None = None
    end: str = ""
    has_system: bool = True
    added: tuple[str, ...] = ()
    """Tokens that stand for themselves but are not special."""


LLAMA2 = """
{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set system = false -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('Roles must take turns.') }}{%- endif -%}
{%- set text = m['content'] -%}
{%- if loop.index0 == 0 and system -%}{%- set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + text -%}{%- endif -%}
{%- if m['role'] == 'user' -%}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}
{%- else -%}{{ ' ' + text.strip() + ' ' + eos_token }}{%- endif -%}
{%- endfor -%}
"""
MISTRAL = """
{{- bos_token }}{%- for m in messages %}
{%- if m['role'] == 'system' %}{{ raise_exception('There is no system role.') }}{% endif %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}
"""
LLAMA3 = """
{{- bos_token }}{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
GEMMA = """
{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{- '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
PHI3 = """
{%- for m in messages %}{%- if m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + '<|end|>\\n' }}
{%- elif m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + '<|end|>\\n' }}
{%- else %}{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""
OLMO2 = """
{{- bos_token }}{% for m in messages %}
{%- if m['role'] == 'assistant' %}{{ '<|assistant|>\\n' + m['content'] + eos_token }}
{{- '' if loop.last else '\\n' }}
{%- else %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}{% endif %}
{%- if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}
"""
QWEN3 = """
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(asking=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.asking and m.role == 'user' and m.content is string
    and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
{%- set ns.asking = false %}{%- set ns.last = index %}{% endif %}{% endfor %}
{%- for m in messages %}{%- set content = m.content if m.content is string else '' %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- elif m.role == 'assistant' %}{%- set thought = '' %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{ '<|im_start|>' + m.role + '\\n' + content }}{% endif %}{{ '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}
"""
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "chatml": Family(CHATML, CHATML_TOKENS, end="<|im_end|>"),
    "llama2": Family(LLAMA2, ("<s>", "</s>"), "<s>", "</s>"),
    "mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", has_system=False),
    "llama3": Family(
        LLAMA3, ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|begin|>", "<|eot_id|>"
    ),
    "gemma": Family(GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<end_of_turn>", has_system=False),
    "phi3": Family(PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), end="<|endoftext|>"),
    "olmo2": Family(OLMO2, ("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>"),
    "qwen3": Family(QWEN3, CHATML_TOKENS, end="<|im_end|>", added=("<think>", "</think>")),
}


def backend(family: Family) -> Tokenizer:
    made = make_tokenizer()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.tokens])
    made.add_tokens([AddedToken(token, normalized=False) for token in family.added])
    return made


def both(family: Family) -> tuple[ChatFormat, Any]:
    from transformers import PreTrainedTokenizerFast

    ours = TextTokenizer(backend(family), end_tokens=[family.end], begin_token=family.begin)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend(family), eos_token=family.end, bos_token=family.begin, chat_template=family.template
    )
    return ChatFormat(ours, family.template), theirs


def says(role: str, content: str) -> Message:
    return {"role": role, "content": content}  # type: ignore[typeddict-item]


ASK, ANSWER = says("user", "A navy dress, 面料柔软 👗?"), says("assistant", "Soft.\nNew.")
SYSTEM = says("system", "Be brief.")
THOUGHT = says("assistant", "<think>\nIs it navy?\n</think>\n\nYes, navy.")
CONVERSATIONS = {
    "ask": [ASK],
    "answered": [ASK, ANSWER],
    "asked again": [ASK, ANSWER, ASK],
    "twice": [ASK, ANSWER, ASK, ANSWER],
    "system": [SYSTEM, ASK, ANSWER],
    "spaces": [says("user", "  two  spaces "), says("assistant", "ok\n")],
    "system and spaces": [says("system", " s \n"), says("user", " u \n"), says("assistant", " a \n")],
    "thought": [ASK, THOUGHT],
    "thought before": [ASK, THOUGHT, ASK, THOUGHT],
    "empty": [says("user", ""), says("assistant", "")],
}


CASES = [
    (name, conversation)
    for name, family in FAMILIES.items()
    for conversation, messages in CONVERSATIONS.items()
    if family.has_system or messages[0]["role"] != "system"
]


@pytest.mark.parametrize(("name", "conversation"), CASES)
@pytest.mark.parametrize("prompt", [False, True])
def test_the_text_is_that_of_transformers(name: str, conversation: str, prompt: bool) -> None:
    messages = CONVERSATIONS[conversation]
    ours, theirs = both(FAMILIES[name])
    rendered = ours.render(messages, add_generation_prompt=prompt)
    expected = theirs.apply_chat_template(copy.deepcopy(messages), add_generation_prompt=prompt, tokenize=False)
    assert theirs.decode(rendered.ids) == expected


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("conversation", ["ask", "answered", "twice", "thought before"])
@pytest.mark.parametrize("prompt", [False, True])
def test_the_ids_are_those_of_transformers(name: str, conversation: str, prompt: bool) -> None:
    ours, theirs = both(FAMILIES[name])
    messages = CONVERSATIONS[conversation]
    expected = theirs.apply_chat_template(copy.deepcopy(messages), add_generation_prompt=prompt, return_dict=False)
    rendered = ours.render(messages, add_generation_prompt=prompt)
    assert theirs.decode(rendered.ids) == theirs.decode(expected)
    if name not in ("llama2", "mistral"):  # there the space before an answer, encoded apart, is a token of its own
        assert rendered.ids == expected


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.has_system])
def test_a_family_without_system_messages_says_so(name: str) -> None:
    with pytest.raises(RequestError, match=r"The model's chat template refuses these messages: .*[Ss]ystem role"):
        both(FAMILIES[name])[0].render([SYSTEM, ASK], add_generation_prompt=True)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("conversation", ["answered", "twice", "thought"])
def test_training_ids_begin_with_the_ids_that_serving_sends_and_the_answer_is_learnt(
    name: str, conversation: str
) -> None:
    family = FAMILIES[name]
    ours, _ = both(family)
    messages = CONVERSATIONS[conversation]
    rendered = ours.render(messages, add_generation_prompt=False)
    prompt = ours.prompt_ids(messages[:-1])
    assert rendered.ids[: len(prompt)] == prompt
    learnt = [i for i, flag in zip(rendered.ids, rendered.is_answer, strict=True) if flag]
    text = ours.tokenizer.decode(learnt)
    said = messages[-1]["content"]
    assert text.strip().endswith(said.strip()), text
    assert not any(rendered.is_answer[: len(prompt)]) or conversation == "twice"
    ends = ours.tokenizer.special_ids
    assert learnt[-1] in (ends.get(family.end), ends.get("<|end|>"))


def test_what_qwen3_puts_before_a_thought_is_learnt_and_older_thoughts_are_left_out() -> None:
    ours, _ = both(FAMILIES["qwen3"])
    rendered = ours.render(CONVERSATIONS["thought before"], add_generation_prompt=False)
    learnt = [i for i, flag in zip(rendered.ids, rendered.is_answer, strict=True) if flag]
    assert ours.tokenizer.decode(learnt) == "Yes, navy.<think>\nIs it navy?\n</think>\n\nYes, navy."
    no_thought = ours.render([ASK, ANSWER], add_generation_prompt=False)
    learnt = [i for i, flag in zip(no_thought.ids, no_thought.is_answer, strict=True) if flag]
    assert ours.tokenizer.decode(learnt) == "<think>\n\n</think>\n\nSoft.\nNew."


def test_a_templates_switch_is_passed_on() -> None:
    ours, theirs = both(FAMILIES["qwen3"])
    rendered = ours.render([ASK], add_generation_prompt=True, variables={"enable_thinking": False})
    expected = theirs.apply_chat_template([dict(ASK)], add_generation_prompt=True, enable_thinking=False)
    assert rendered.ids == expected["input_ids"]
    assert ours.prompt_ids([ASK]) != rendered.ids


TAGGED = {
    "content and end": CHATML,
    "end outside": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    ),
    "line break inside": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("name", TAGGED)
@pytest.mark.parametrize("conversation", ["ask", "answered", "asked again", "twice", "system", "thought"])
def test_generation_tags_give_the_mask_of_transformers(name: str, conversation: str) -> None:
    ours, theirs = both(Family(TAGGED[name], CHATML_TOKENS, end="<|im_end|>"))
    messages = CONVERSATIONS[conversation]
    expected = theirs.apply_chat_template(
        copy.deepcopy(messages), return_assistant_tokens_mask=True, return_dict=True, add_generation_prompt=False
    )
    rendered = ours.render(messages, add_generation_prompt=False)
    assert rendered.ids == expected["input_ids"]
    assert [int(flag) for flag in rendered.is_answer] == expected["assistant_masks"]


def test_words_that_carry_their_spaces_are_encoded_as_transformers_does() -> None:
    """Llama 2's own kind of tokenizer: the space before an answer is part of the answer's first piece."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = sentencepiece_bpe()
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece_bpe().backend, bos_token="<s>", eos_token="</s>", chat_template=LLAMA2
    )
    theirs.backend_tokenizer.encode_special_tokens = False
    messages = [says("user", "navy dress?"), says("assistant", "navy 面料"), says("user", "dress"), ANSWER]
    ours = ChatFormat(tokenizer, LLAMA2)
    expected = theirs.apply_chat_template(copy.deepcopy(messages), return_dict=False)
    rendered = ours.render(messages, add_generation_prompt=False)
    assert rendered.ids == expected
    learnt = [i for i, flag in zip(rendered.ids, rendered.is_answer, strict=True) if flag]
    assert learnt[0] == tokenizer.backend.token_to_id("▁navy")
    prompt = ours.prompt_ids(messages[:-1])
    assert rendered.ids[: len(prompt)] == prompt


def test_the_date_and_json_are_there_as_in_transformers() -> None:
    template = "{{ strftime_now('%Y') | length }}{{ messages | tojson }}{{ [1, '面'] | tojson(indent=2) }}"
    ours, theirs = both(Family(template, CHATML_TOKENS, end="<|im_end|>"))
    expected = theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert ours._template.render({"messages": [{"role": "user", "content": "x"}]}) == expected
