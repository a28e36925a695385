"""Conversations against transformers' apply_chat_template, and what messages cannot do to them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qkv.errors import CheckpointError, InputError
from qkv.text.chat import MAX_MESSAGES, ROLES, ChatTemplate, Message
from qkv.text.language import LanguageTokenizer
from qkv.text.vocabulary import BYTE_OF, Added, assemble
from qkv.text.words import byte_rules

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""  # noqa: E501
TEMPLATES = {
    "chatml": CHATML,
    "smollm2": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",  # noqa: E501
    "llama-2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",  # noqa: E501
    "llama-3": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",  # noqa: E501
    "llama-3.2": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",  # noqa: E501
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool") | list %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "qwen2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",  # noqa: E501
    "qwen3": """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",  # noqa: E501
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "everything else": """{% macro show(text, times=1) %}{% for i in range(times) %}[{{ text }}]{% endfor %}{% endmacro %}
{%- generation %}{{ show('x' ~ 1 ~ none, times=3) }}{% endgeneration %}
{%- for key, value in {'b': [1, 2.5], 'a': {'c': none}}.items() %}{{ key }}={{ value|tojson }},{% endfor %}
{{- {'é': [true, '<&>']}|tojson(indent=2) }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 3 * 'ab' }} {{ [1, 2] * 2 }} {{ 2 - 0.5 }}
{%- for message in messages if message.role != 'tool' %}
{%- if loop.index > 3 %}{% break %}{% endif %}
{%- if loop.first %}{% continue %}{% endif %}
{{- loop.cycle('odd', 'even') }} {{ message.content|upper|replace('A', 'aa')|indent(2) }}
{%- endfor %}
{%- set joined %}{{ messages|map(attribute='role')|join(', ') }}{% endset %}
{{- joined|title }} {{ joined.split(',')|length }} {{ messages|selectattr('role', 'in', ['user'])|list|length }}
{{- messages|map(attribute='content')|map('trim')|list|first|default('?') }} {{ messages[-1:][0].content[:3] }}
{{- ','.join(['a', 'b']) }} {{ 'a,b'.replace(',', ';', 1) }} {{ (1, 'two', none) }} {{ not true or 1 < 2 <= 2 }}
{{- unknown is defined }} {{ unknown }} {{ messages|length is even }} {{ ('b', 'a')|sort|join }} {{ 'x' if false }}
{{- namespace(a=1).a }} {{ dict(a=1)|items|list }} {{ '%s' if 1 else '' }} {{ -1|abs }} {{ '5'|int + '1.5'|float }}
{{- [3, 1, 3]|unique|list }} {{ [1, 2]|reverse|list }} {{ {'b': 1, 'a': 2}|dictsort }} {{ 'é' | tojson }}""",  # noqa: E501
}  # fmt: skip
CONTROL = [
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>"),
]
FIRST = 256


def made() -> LanguageTokenizer:
    """Bytes and control tokens, the vocabulary that hides nothing."""
    added = [Added(id=FIRST + i, content=token, special=True) for i, token in enumerate(CONTROL)]
    ids = {symbol: id for id, symbol in enumerate(BYTE_OF)}
    return LanguageTokenizer(assemble(ids, added, merges=[], rules=byte_rules(), bos="<s>", eos="</s>"))


@pytest.fixture(scope="module")
def tokenizer() -> LanguageTokenizer:
    return made()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, tokenizer: LanguageTokenizer) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def templates() -> dict[str, ChatTemplate]:
    return {name: ChatTemplate(source) for name, source in TEMPLATES.items()}


def said(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]


TALKS = {
    "one": said(("user", "What is the capital of France?")),
    "system": said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", " 2+2? \n")),
    "thought": said(("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c")),
    "tools": said(("user", "a"), ("assistant", "b"), ("tool", '{"x": 1}'), ("tool", "2")),
    "odd": said(("user", "< | <| <|im <|im_en [INS \ue000 é狗🐶\0\u202e {{ 1 }} {% raw %} <")),
    "two answers": said(("user", "a"), ("assistant", "b"), ("assistant", "c")),
    "empty": said(("user", ""), ("assistant", "")),
}


def check(template: ChatTemplate, tokenizer: LanguageTokenizer, theirs: Any, messages: list[Message]) -> None:
    plain = [{"role": message.role, "content": message.content} for message in messages]
    for answer in (True, False):
        try:
            expected = theirs.apply_chat_template(
                plain, chat_template=template.source, add_generation_prompt=answer, return_dict=False
            )
        except Exception as error:  # raise_exception
            with pytest.raises(InputError, match=re.escape(str(error)[:40])):
                template.encode(messages, tokenizer, answer=answer)
        else:
            assert template.encode(messages, tokenizer, answer=answer) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("talk", TALKS)
def test_the_same_ids(name: str, talk: str, tokenizer: LanguageTokenizer, theirs: Any, templates: Any) -> None:
    check(templates[name], tokenizer, theirs, TALKS[talk])


CONTENT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not any(token in text for token in CONTROL)
)


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(sorted(TEMPLATES)), turns=st.lists(st.tuples(st.sampled_from(ROLES), CONTENT), min_size=1))
def test_any_conversation(
    name: str, turns: list[tuple[str, str]], tokenizer: LanguageTokenizer, theirs: Any, templates: Any
) -> None:
    check(templates[name], tokenizer, theirs, said(*turns))


@settings(deadline=None)
@given(
    contents=st.lists(st.lists(st.sampled_from([*CONTROL, "<|", "im_end|>", "<", "|>", " ", "\n", "a"])), min_size=1)
)
def test_messages_place_no_control_tokens(contents: list[list[str]], tokenizer: LanguageTokenizer) -> None:
    """However they spell them, in one message or across two: the template's are there, and theirs as text."""
    template = ChatTemplate("{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}<|im_end|>")
    texts = ["".join(parts) for parts in contents]
    ids = template.encode([Message("user", text) for text in texts], tokenizer)
    assert [id for id in ids if tokenizer.is_control(id)] == [tokenizer.bos, FIRST + 1]
    assert tokenizer.decode(ids) == "".join(texts)


@pytest.mark.parametrize("space", ["", " ", "\n\n"])
@pytest.mark.parametrize("token", CONTROL)
def test_two_messages_place_none_together(token: str, space: str, tokenizer: LanguageTokenizer) -> None:
    """Nor with what the template writes after them, or after the space at their end is taken away."""
    template = ChatTemplate("{% for message in messages %}{{ message.content.strip() }}{% endfor %}")
    for cut in range(1, len(token)):
        begun, ended = Message("user", token[:cut] + space), Message("user", token[cut:])
        ids = template.encode([begun, ended], tokenizer)
        assert not any(map(tokenizer.is_control, ids))
        assert tokenizer.decode(ids) == token


def test_contents_may_use_private_characters(tokenizer: LanguageTokenizer) -> None:
    template = ChatTemplate(CHATML)
    text = "".join(map(chr, range(0xE000, 0xE100))) + "<|im_end|>\ue000"
    assert text in tokenizer.decode(template.encode([Message("user", text)], tokenizer))
    every = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0x110000)]))
    with pytest.raises(InputError, match="private character"):
        template.encode([Message("user", every)], tokenizer)


def test_half_surrogates(tokenizer: LanguageTokenizer) -> None:
    ids = ChatTemplate(CHATML).encode([Message("user", "a\ud800b")], tokenizer)
    assert "a\ufffdb" in tokenizer.decode(ids)


def test_what_is_no_conversation(tokenizer: LanguageTokenizer) -> None:
    template = ChatTemplate(CHATML)
    with pytest.raises(InputError, match="unknown role 'usr'; did you mean user"):
        Message("usr", "a")
    with pytest.raises(InputError, match="NoneType; it must be a text"):
        Message("user", None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no messages"):
        template.encode([], tokenizer)
    with pytest.raises(InputError, match=r"10,001 messages; at most 10,000"):
        template.encode([Message("user", "a")] * (MAX_MESSAGES + 1), tokenizer)
    with pytest.raises(InputError, match=r"5,000,000 characters; at most 4,000,000"):
        template.encode([Message("user", "a" * 5_000_000)], tokenizer)


def test_long_conversations_are_no_trouble(tokenizer: LanguageTokenizer, templates: Any) -> None:
    """The budget grows with what is said."""
    turns = said(*[("user", "a" * 50), ("assistant", "b" * 50)] * 1000)
    for name in ("chatml", "llama-2", "llama-3.2", "qwen2.5", "qwen3", "zephyr"):
        assert len(templates[name].encode(turns, tokenizer)) > 100_000
    assert len(templates["mistral"].encode([Message("user", "a" * 1_000_000)], tokenizer)) > 1_000_000


def test_where_templates_are_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no chat model"):
        ChatTemplate.load(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert ChatTemplate.load(tmp_path).source == "one"
    named: list[object] = [{"name": ["x"], "template": "tools"}, 7, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.load(tmp_path).source == "two"
    config.write_text(json.dumps({"chat_template": named[:2]}))
    with pytest.raises(CheckpointError, match="is no chat model"):
        ChatTemplate.load(tmp_path)
    ChatTemplate("three\n").save(tmp_path)
    assert ChatTemplate.load(tmp_path).source == "three\n"
    assert ChatTemplate.from_gguf({"tokenizer.chat_template": "four"}).source == "four"
    with pytest.raises(CheckpointError, match="GPT has no chat template"):
        ChatTemplate.from_gguf({"general.name": "GPT"})
