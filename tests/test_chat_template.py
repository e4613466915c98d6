"""Chat templates: the prompts of transformers, what drops the question, what breaks, what never ends, what breaks out."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files
from hypothesis import given, settings
from hypothesis import strategies as st

from longshot_jax.data.chat_template import ChatTemplate, only_template, stored_template
from longshot_jax.data.tokenizer import Tokenizer
from longshot_jax.errors import UserError

QUESTION = '  How many?\n\nBlue *and* green: 3 < 4, "so" it\'s é.  '
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PARTS = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{{ eos_token }}{% endfor %}"
)
# In the style of published models.
TEMPLATES = {
    "llama_2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama_2_default_system": "{% for m in messages %}{{ bos_token + '[INST] <<SYS>>\nBe helpful.\n<</SYS>>\n\n' + m['content'].strip() + ' [/INST]' }}{% endfor %}",
    "llama_3": LLAMA3,
    "llama_3_2": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
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
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- message.tool_calls[0].function.arguments | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "chatml": CHATML,
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
    "vicuna": "{% if messages[0]['role'] != 'system' %}A chat between a user and an assistant. {% endif %}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% continue %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "llama_guard": "[INST] Is the last message safe?\n{% for message in messages %}{% if message['role'] | lower == 'user' %}{% set role = 'User' %}{% else %}{% set role = 'Agent' %}{% endif %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ '\n\n' + role + ': ' + part['text'] | trim }}{% endif %}{% endfor %}{% endfor %} [/INST]",
    "first_part": "{% for m in messages %}{{ 'User: ' + m['content'][0]['text'] }}{% endfor %}",
    "either_form": "{% for m in messages %}{% if m['content'] is string %}{{ 'string ' + m['content'] }}{% else %}{{ 'parts ' + m['content'][0]['text'] }}{% endif %}{% endfor %}",
    "r1_distill": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' %}{% set content = message['content'].split('</think>')[-1] %}{{'<｜Assistant｜>' + content}}{%- endif %}{%- endfor -%}{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}",
    "generation": "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% generation %}{{ 'A: ' }}{% endgeneration %}{% endfor %}",
}  # fmt: skip
IN_PARTS = ("llama_guard", "first_part")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """transformers' tokenizer, which renders any template."""
    import transformers

    folder = llama_files(tmp_path_factory.mktemp("reference"), LLAMA_SPECIALS, **LLAMA)
    return transformers.AutoTokenizer.from_pretrained(folder)


def expected(reference, template, *texts, parts=False):
    contents = [[{"type": "text", "text": text}] if parts else text for text in texts]
    chat = [{"role": role, "content": content} for role, content in zip(("user", "assistant"), contents, strict=False)]
    named = {"date_string": "26 Jul 2024", "add_generation_prompt": len(texts) == 1, **VARIABLES}
    return reference.apply_chat_template(chat, chat_template=template, tokenize=False, **named)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(reference, name):
    template, parts = ChatTemplate(TEMPLATES[name], VARIABLES, name), name in IN_PARTS
    for question in (QUESTION, "", "a" * 5000):
        assert template.render(question) == expected(reference, TEMPLATES[name], question, parts=parts)
    assert template.render_turn("?", "18") == expected(reference, TEMPLATES[name], "?", "18", parts=parts)


@pytest.fixture(scope="module")
def zephyr():
    return ChatTemplate(TEMPLATES["zephyr"], VARIABLES, "zephyr")


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_every_question_comes_back_in_its_own_prompt(reference, zephyr, question):
    assert zephyr.render(question) == expected(reference, TEMPLATES["zephyr"], question)


def llama_folder(folder, template, file="tokenizer_config.json"):
    """A tokenizer's folder with a template as published: in `tokenizer_config.json`, or in a file of its own."""
    llama_files(folder, LLAMA_SPECIALS, **LLAMA)
    if file.endswith(".jinja"):
        (folder / file).write_text(template)
    else:
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(content | {"chat_template": template}))
    return str(folder)


NAMED = [{"name": "tool_use", "template": CHATML}, {"name": "rag", "template": CHATML}]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m['content'] }", "syntax error in line 1"),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('No system!') }}{% endif %}", r"refuses .*\(No system!\)"),
        (NAMED, "no chat template named default, only tool_use, rag"),
        ([{"name": "default"}], "is no text"),
        ([1], "is no text"),
        ({"default": 7}, "is no text"),
        ("{{ messages }}{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ messages | no_such_filter }}", "syntax error in line 1"),
        ("{{ raise_exception() }}", "TypeError"),
        ("{{ " + "(" * 5000, "RecursionError"),
        ("Hello!", "without the question"),
        ("{{ messages[0].content | upper }}", "without the question, or with a changed one"),
        ("{{ messages[0].content[:200] }}", "without the question, or with a changed one"),
        ("{{ messages[0].content | length }}", "without the question"),
    ],
)  # fmt: skip
def test_a_template_that_renders_no_question_is_one_sentence(template, told):
    with pytest.raises(UserError, match=rf"^here: .*{told}") as caught:
        ChatTemplate(only_template(template, "here"), VARIABLES, "here")
    assert "\n" not in str(caught.value) and ": " in str(caught.value).removeprefix("here: ")


@pytest.mark.parametrize("template", [7, 0, 1.5, True])
def test_a_template_that_is_no_text(tmp_path, template):
    with pytest.raises(UserError, match=r"tokenizer_config\.json: the chat template is no text"):
        Tokenizer.load(llama_folder(tmp_path, template))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_the_file_with_the_template_is_read_and_named(tmp_path, file):
    tokens = Tokenizer.load(llama_folder(tmp_path, PARTS, file))
    assert tokens.decode(tokens.encode_question(QUESTION)) == f"user: {QUESTION.strip()}"
    tokens.save(tmp_path / "copy")
    assert Tokenizer.load(str(tmp_path / "copy")).encode_question("a?") == tokens.encode_question("a?")
    with pytest.raises(UserError, match=rf"{file}: the chat template has a syntax error in line 2"):
        Tokenizer.load(llama_folder(tmp_path, "{{ bos_token }}\n{% endfor %}", file))


def test_templates_in_transformers_order(tmp_path):
    assert stored_template(tmp_path) == (tmp_path / "tokenizer_config.json", None)
    for file, template in (("chat_template.json", "last"), ("tokenizer_config.json", "then")):
        (tmp_path / file).write_text(json.dumps({"chat_template": template}))
        assert stored_template(tmp_path) == (tmp_path / file, template)
    (tmp_path / "chat_template.jinja").write_text("first")
    assert stored_template(tmp_path) == (tmp_path / "chat_template.jinja", "first")
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "rag.jinja").write_text("more")
    assert stored_template(tmp_path) == (more, {"default": "first", "rag": "more"})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja cannot be read"):
        stored_template(tmp_path)


def test_named_templates_give_the_default(tmp_path):
    tokens = Tokenizer.load(llama_folder(tmp_path, [*NAMED, {"name": "default", "template": PARTS}]))
    assert tokens.decode(tokens.encode_question("a?")) == "user: a?"
    with pytest.raises(UserError, match=r"tokenizer_config\.json: there is no chat template named default"):
        Tokenizer.load(llama_folder(tmp_path, NAMED))


LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (LOOPS, "more than 2 seconds"),
        ("{{ 10 ** (10 ** 10) }}", "more than 2 seconds"),  # one operation, inside which Python handles no signal
        ("{{ 'a' * 10**11 }}", "more than 256 MB"),
        ("{{ 'a' * (3 * 10**8) }}", "more than 256 MB"),
        ("{{ 'a' | center(10**10) }}", "more than 256 MB"),
        ("{{ '%09999999999d' % 1 }}", "more than 256 MB"),
        ("{{ '{:09999999999}'.format(1) }}", "more than 256 MB"),
        ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "256 MB"),
        ("{{ 'a' * (2 * 10**6) }}", r"2,000,\d+ letters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for i in range(10**10) %}{% endfor %}", "Range too big"),
    ],
)
def test_time_and_size_are_bounded(template, told):
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"^here: the chat template .*{told}"):
        ChatTemplate(template + CHATML, VARIABLES, "here")
    assert time.monotonic() - began < 30  # 2 s of a busy machine's CPU


def test_a_cost_that_depends_on_the_question_is_bounded():
    template = ChatTemplate("{{ 'a' * (messages[0].content | int) }}" + CHATML, VARIABLES, "here")
    before = template.render("How many?")
    with pytest.raises(
        UserError, match=r"^here: for the question '100000000000' the chat template needs more than 256"
    ):
        template.render("1" + "0" * 11)
    assert template.render("How many?") == before
    answered = "{% if messages[-1].role == 'assistant' %}{{ 'a' * 10**11 }}{% endif %}"
    template = ChatTemplate(answered + CHATML, VARIABLES, "here")
    assert template.render_turn("?", "18") == "" and template.render("How many?") == before


def test_a_question_may_end_the_process_but_not_the_next_prompt():
    template = ChatTemplate("{% if messages[0].content == 'slow' %}" + LOOPS + "{% endif %}" + CHATML, VARIABLES, "f")
    before = template.render("How many?")
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        template.render("slow")
    assert template.render("How many?") == before
    with pytest.raises(UserError, match="for the question 'slow' the chat template takes more than 2 seconds"):
        template.render("slow")
    assert template.render("How many?") == before


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_process_ends_with_its_template_and_its_parent():
    template = ChatTemplate(CHATML, VARIABLES, "here")
    process = template._process
    for sent in (signal.SIGINT, signal.SIGTERM):  # as a terminal or a cluster sends to every process of a run
        process.send_signal(sent)
    assert "How many?" in template.render("How many?")
    del template
    gc.collect()
    assert process.returncode is not None
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; from longshot_jax.data.chat_template import ChatTemplate\n"
            "assert not {'jax', 'transformers'} & sys.modules.keys()\n"
            f"t = ChatTemplate({CHATML!r}, {{}}, ''); print(t._process.pid, flush=True); os.kill(os.getpid(), 9)",
        ],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    child = int(killed.stdout)
    for _ in range(100):
        if not running(child):
            return
        time.sleep(0.1)
    raise AssertionError("the process outlived its parent")


WAYS_OUT = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class_by_filter": "{{ (''|attr('__class__')).__base__.__subclasses__() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch MADE').read() }}",
    "joiner": "{{ joiner.__init__.__globals__['os'].popen('cat SECRET').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('cat SECRET; touch MADE').read() }}",
    "namespace": "{{ namespace.__init__.__globals__.__builtins__.open('SECRET').read() }}",
    "namespace_call": "{% set n = namespace(__call__=cycler.__init__) %}{{ n() }}",
    "namespace_item": "{% set n = namespace() %}{% set n.__class__ = cycler %}{{ n.__class__.__init__ }}",
    "self": "{{ self.__init__.__globals__.__builtins__['open']('SECRET').read() }}",
    "context": "{{ self._TemplateReference__context.environment.globals }}",
    "format": "{{ '{0.__init__.__globals__[os].environ}'.format(cycler) }}",
    "format_by_filter": "{{ ('{0.__init__.__globals__[os]}'|attr('format'))(cycler) }}",
    "format_map": "{% set f = '{a.__globals__[os]}'.format_map %}{{ f({'a': lipsum}) }}",
    "format_percent": "{{ '%s'|format(lipsum.__globals__) }}",
    "include": "{% include 'SECRET' %}",
    "import": "{% import 'SECRET' as stolen %}{{ stolen }}",
    "from_import": "{% from 'SECRET' import x %}{{ x }}",
    "extends": "{% extends 'SECRET' %}",
    "macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "macro_call": "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "caller": "{% macro m() %}{{ caller.__init__.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "loop": "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "generator": "{{ (messages|map('string')).gi_frame.f_globals }}",
    "undefined": "{{ nothing.__init__.__globals__ }}",
    "map_attribute": "{{ messages|map(attribute='__class__')|list }}",
    "sort_attribute": "{{ [cycler]|map(attribute='__init__.__globals__.os')|list }}",
    "dict": "{{ dict.mro() }}",
    "raise_exception": "{{ raise_exception.__globals__ }}",
    "date": "{{ strftime_now.__globals__['__builtins__'] }}",
    "tag": "{% generation %}{{ caller.__globals__ }}{% endgeneration %}{{ loop.__self__ }}",
    "append": "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
    "update": "{{ messages[0].update(content='changed') }}",
    "list_sort": "{% set l = [2, 1] %}{{ l.sort() }}{{ l }}",
}  # fmt: skip
INSIDE = ("TOP-SECRET", "<class", "<module", "<function", "<frame", "<built-in", "__builtins__", "environ(", "[1, 2]")


@pytest.mark.parametrize("way", WAYS_OUT)
def test_no_way_out_of_the_sandbox(tmp_path, way):
    secret, made = tmp_path / "secret", tmp_path / "made"
    secret.write_text("TOP-SECRET")
    template = WAYS_OUT[way].replace("SECRET", str(secret)).replace("MADE", str(made))
    try:
        told = ChatTemplate(template + CHATML, VARIABLES, "here").render("How many?")
    except UserError as error:
        told = str(error)
        assert "\n" not in told
    assert not made.exists() and not [inside for inside in INSIDE if inside in told], told
    assert "more<|im_end|>" not in told and "changed<|im_end|>" not in told


PIECES = (
    "{%", "%}", "{{", "}}", "{#", "{% if ", "{% for m in messages %}", "{% endfor %}", "{% endif %}", "messages", "[0]",
    "['content']", ".content", "|trim", "|", "(", ")", "'", "1", "/0", "*", "~", "raise_exception('no')", " else ", "\n",
)  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20))
def test_any_text_is_a_template_or_one_sentence(text):
    for template in (text, "{{ messages[0].content }}" + text):
        try:
            assert "How many?" in ChatTemplate(template, VARIABLES, "here").render("How many?")
        except UserError as error:
            assert str(error).startswith("here: the chat template ")


def chatml_files(folder):
    """Llama's specials with the turns of SmolLM2: ChatML with a system prompt of its own."""
    system = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    folder.mkdir(exist_ok=True)
    specials = ["<|im_start|>", "<|im_end|>"]
    llama_files(folder, specials, system + CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>")
    (folder / "chat_template.jinja").unlink()  # it is a setting instead, as older folders have it
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": system + CHATML}))
    return str(folder)


def test_a_minimal_template_keeps_the_turns_alone(tmp_path):
    folder = chatml_files(tmp_path / "model")
    whole, short = Tokenizer.load(folder), Tokenizer.load(folder, chat_template="minimal")
    assert "Be kind." in whole.decode(whole.encode_question("How many?"))
    turns = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert short.encode_question("How many?") == short.encode(turns)
    assert short.ends == whole.ends
    assert Tokenizer.load(folder, chat_template="none").encode_question("How many?") == short.encode("How many?\n")
    # What a run stores needs no setting; a minimal template stays as it is.
    for choice, tokens in (("minimal", short), ("none", Tokenizer.load(folder, chat_template="none"))):
        tokens.save(tmp_path / choice)
        again = Tokenizer.load(str(tmp_path / choice))
        assert again.encode_question("Why?") == tokens.encode_question("Why?") and again.ends == tokens.ends
    assert Tokenizer.load(str(tmp_path / "minimal"), chat_template="minimal").encode_question("Why?") == (
        short.encode_question("Why?")
    )


@pytest.mark.parametrize("name", ["llama_3", "llama_3_2", "zephyr"])
def test_minimal_turns_of_published_templates(name):
    template = ChatTemplate(TEMPLATES[name], VARIABLES, "a")
    short = ChatTemplate(template.shortened(), VARIABLES, "b")
    prompt, own = short.render("What is 2 + 2?"), template.render("What is 2 + 2?")
    assert prompt.startswith("<s>") == own.startswith("<s>")
    assert own.endswith(prompt.removeprefix("<s>")) and "Today" not in prompt
    assert short.render_turn("a?", "b")[-4:] == template.render_turn("a?", "b")[-4:]


def test_chosen_templates_that_cannot_work(tmp_path):
    folder = chatml_files(tmp_path / "model")
    file = tmp_path / "own.jinja"
    file.write_text("Q: {{ messages[0]['content'] }} A:")
    assert (tokens := Tokenizer.load(folder, chat_template=str(file))).encode_question("Why?") == tokens.encode(
        "Q: Why? A:"
    )
    file.write_text("Hello!")
    with pytest.raises(UserError, match=r"own\.jinja: the chat template renders a prompt without the question"):
        Tokenizer.load(folder, chat_template=str(file))
    with pytest.raises(UserError, match=r"config\.data\.chat_template: .*/none\.jinja cannot be read"):
        Tokenizer.load(folder, chat_template=str(tmp_path / "none.jinja"))
    (tmp_path / "plain").mkdir()
    plain = llama_files(tmp_path / "plain", LLAMA_SPECIALS, **LLAMA)
    with pytest.raises(
        UserError, match=r"chat_template is minimal, but tokenizer .* has no chat template: set it to none"
    ):
        Tokenizer.load(plain, chat_template="minimal")
    single = ChatTemplate("{{ messages[0]['content'] }}", VARIABLES, "one")
    with pytest.raises(UserError, match="one: the chat template tells no turns"):
        single.shortened()
