"""Questions to prompts by a model's chat template: a program from elsewhere, so it runs in a process with limits.

Jinja's sandbox keeps a template from files and code, but bounds neither time nor memory. In this process every operator,
filter and method that can grow (`*`, `**`, `~`, `center`, format widths, macros that call themselves) would need a bound
of its own; the operating system's limits leave none out. And since the cost may depend on the question, every question
is rendered there, not only those of the check on load. The process starts once for a tokenizer, in a tenth of a second
(it imports neither jax nor transformers), waits for questions, and ends with its parent.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, ClassVar

from longshot_jax.errors import UserError, first_line
from longshot_jax.files import read_json

_SECONDS = 2  # of CPU for one prompt, which takes less than a thousandth of it
_MEGABYTES = 256
_LETTERS = 10**6  # of a prompt, beyond what the question may need
# Templates such as Llama 3.2's put today's date into the prompt. It is fixed to their fallback date, so that prompts do
# not change between a run and a later evaluation.
_DATE = "26 Jul 2024"
# What must come out of a template that is given it.
_PROBES = (
    "How many clips did she sell?",
    "What is 7 times 8?",
    "\n".join(f"In week {week} she sold {3 * week} clips." for week in range(1, 31)),
)
_COPY = "copy it again from the model's source"
_REPAIR = f"fix it, or {_COPY}"


class ChatTemplate:
    """A chat template that was checked: it renders one message of the user, and the question is in the prompt.

    Content is a string, or a list of one part {"type": "text", "text": question} where the string does not come out
    (Llama Guard). A template that refuses a conversation without a system message is refused: only its author knows the
    text that the model was trained with, and it belongs into the template.

    `variables` are the template's others, such as `bos_token`; `file` is for messages. Raises UserError for a template
    that is broken, exceeds the limits, refuses the message, or drops or changes the question beyond white space.
    """

    def __init__(self, template: str, variables: dict[str, Any], file: str):
        self._given = {"template": template, "variables": variables}
        self._file = file
        self._process: subprocess.Popen[str] | None = None
        self._end: weakref.finalize | None = None
        self._lock = threading.Lock()
        faults = []
        for self._parts in (False, True):
            reply = self._check()
            if "fault" not in reply:
                return
            faults.append(reply["fault"])
            if "limit" in reply:
                break
        self._stop()
        raise UserError(f"{file}: the chat template {faults[0]}")

    def _check(self) -> dict[str, Any]:
        """The first fault with content in this form, as `_ask` gives it; empty if there is none."""
        prompts = set()
        for probe in _PROBES:
            reply = self._ask(probe)
            if "fault" in reply:
                return reply
            if _letters(probe) not in _letters(reply["prompt"]) or reply["prompt"] in prompts:
                return {"fault": f"renders a prompt without the question, or with a changed one: {_REPAIR}"}
            prompts.add(reply["prompt"])
        return {}

    def render(self, question: str) -> str:
        """The prompt. Raises UserError if the template fails on this question."""
        reply = self._ask(question)
        if "fault" in reply:
            raise UserError(f"{self._file}: for the question {question[:60]!r} the chat template {reply['fault']}")
        return reply["prompt"]

    def render_turn(self, question: str, answer: str) -> str:
        """Question and answer as a whole turn; empty if the template refuses it or fails."""
        return self._ask(question, answer).get("prompt", "")

    def shortened(self) -> str:
        """A template with the turns of this one and nothing else: no system prompt, no date.

        What stands between an answer and the next question is the end of the answer's turn and the start of the
        question's; a beginning-of-text token stays. Raises UserError if the template renders no second question.
        """
        first, answer, second = "What is 7 times 8?", "It is 56.", "What is 3 times 5?"
        prompt, whole = self._ask(first).get("prompt", ""), self.render_turn(first, answer)
        longer = self._ask(first, answer, second).get("prompt", "")
        end = whole.rpartition(answer)[2]
        turn = longer.rpartition(second)[0].rpartition(answer)[2]
        if not (answer in whole and second in longer and turn.startswith(end)):
            raise UserError(
                f"{self._file}: the chat template tells no turns, since it renders no second question: set "
                "config.data.chat_template to model, none or the path of a template"
            )
        bos = str(self._given["variables"].get("bos_token") or "")
        start = turn.removeprefix(end)
        if prompt.startswith(bos) and not start.startswith(bos):  # SmolLM2's begins every turn
            start = bos + start
        before, after, closing = map(json.dumps, (start, prompt.rpartition(first)[2], end))
        return (
            "{% for message in messages %}{% if message['role'] == 'user' %}{{ "
            f"{before} + message['content'] + {after} }}}}{{% else %}}{{{{ message['content'] + {closing} }}}}"
            "{% endif %}{% endfor %}"
        )

    def _ask(self, *texts: str) -> dict[str, Any]:
        """{"prompt": ...}, or {"fault": ..., with the fix}, and "limit" beside it if a limit was met.

        `texts` are the user's and the assistant's in turn; the assistant's next is opened after the user's.
        """
        messages = [
            {
                "role": "assistant" if number % 2 else "user",
                "content": [{"type": "text", "text": text}] if self._parts else text,
            }
            for number, text in enumerate(texts)
        ]
        asked = {"messages": messages, "add_generation_prompt": len(texts) % 2 == 1}
        with self._lock:
            process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(asked) + "\n")
                    process.stdin.flush()
                line = process.stdout.readline()
            except BaseException:  # an interrupt: the next question must not get this one's reply
                self._stop()
                raise
            if line:
                return json.loads(line)
            code = process.wait()
            self._stop()
        fault = f"takes more than {_SECONDS} seconds for one prompt"
        if code != -signal.SIGPROF:
            fault = f"ends the process that renders it, with exit code {code}"
        return {"fault": f"{fault}: {_REPAIR}", "limit": True}

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._end = weakref.finalize(self, _close, self._process)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is seen where its reply is read
            self._process.stdin.write(json.dumps(self._given, default=str) + "\n")
        return self._process

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None


def stored_template(folder: Path) -> tuple[Path, Any]:
    """The file of a tokenizer's folder that holds the chat template, and what it holds; None for no template.

    In transformers' order. A `chat_template.json`, which its processors read and its tokenizers do not, comes last.
    Raises UserError for a file that cannot be read.
    """
    config, processor = folder / "tokenizer_config.json", folder / "chat_template.json"
    default, others = folder / "chat_template.jinja", sorted((folder / "additional_chat_templates").glob("*.jinja"))
    try:
        if default.exists() and not others:
            return default, default.read_text(encoding="utf-8")
        if others:
            named = {"default": default} if default.exists() else {}
            named |= {path.stem: path for path in others}
            return others[0].parent, {name: path.read_text(encoding="utf-8") for name, path in named.items()}
        for file in (config, processor):
            content = read_json(file, advice=_COPY) if file.exists() else {}
            template = content.get("chat_template")
            if template is not None:
                return file, template
    except (OSError, ValueError) as error:
        raise UserError(f"{default} cannot be read ({first_line(error)}): {_COPY}") from None
    return config, None


def only_template(template: Any, file: str) -> str:
    """The template of conversations without tools: the only one, or the one named `default`. Raises UserError."""
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and {"name", "template"} <= entry.keys()]
        template = {str(entry["name"]): entry["template"] for entry in named} if named == template else None
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(template) or "none"
            raise UserError(
                f"{file}: there is no chat template named default, only {names}: name the one for questions default"
            )
        template = template["default"]
    if not isinstance(template, str):
        raise UserError(f"{file}: the chat template is no text: give a text, or a list of name and template")
    return template


def _letters(text: str) -> str:
    """Without white space: templates trim it, at the ends or in lines."""
    return "".join(text.split())


def _close(process: subprocess.Popen[str]) -> None:
    process.kill()
    with contextlib.suppress(BrokenPipeError), process:  # closes the pipes, where a question may be left, and waits
        pass


def _serve() -> None:
    """The process with limits: reads the template, then answers each line's content with a line, until none comes."""
    import resource

    for ignored in (signal.SIGINT, signal.SIGTERM):  # of the parent's whole group; the parent ends this process
        signal.signal(ignored, signal.SIG_IGN)
    for usual in (signal.SIGPROF, signal.SIGPIPE):  # a parent that is gone ends this process without a word
        signal.signal(usual, signal.SIG_DFL)
    environment = _environment()
    given = json.loads(sys.stdin.readline())
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = _MEGABYTES * 2**20 if hard == resource.RLIM_INFINITY else min(_MEGABYTES * 2**20, hard)
    with contextlib.suppress(ValueError):  # macOS bounds no memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    template = None
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, _SECONDS)  # ends the process, even inside one long product of integers
        try:
            template = template or environment.from_string(given["template"])
            prompt = template.render({"tools": None, "documents": None} | given["variables"] | json.loads(line))
            if len(prompt) > _LETTERS + 2 * len(line):
                reply = {"fault": f"renders a prompt of {len(prompt):,} letters: {_REPAIR}", "limit": True}
            else:
                reply = {"prompt": prompt}
        except Exception as error:
            reply = {"fault": _fault(error)} | ({"limit": True} if isinstance(error, MemoryError) else {})
        print(json.dumps(reply), flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _fault(error: Exception) -> str:
    from jinja2 import exceptions

    if isinstance(error, MemoryError):
        return f"needs more than {_MEGABYTES} MB for one prompt: {_REPAIR}"
    if isinstance(error, exceptions.TemplateSyntaxError):
        return f"has a syntax error in line {error.lineno} ({first_line(error)}): {_REPAIR}"
    if type(error) is exceptions.TemplateError:  # raise_exception
        return (
            f"refuses one message of the user alone ({first_line(error)}): change it to render that, with the system "
            "text, if it asks for one, written into it"
        )
    return f"fails ({type(error).__name__}: {first_line(error)}): {_REPAIR}"


def _environment() -> Any:
    """Jinja's sandbox with the names, filters and tags that transformers gives to chat templates."""
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils

    class Generation(jinja2.ext.Extension):
        """{% generation %}, which marks the assistant's text for training: the text inside."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Namespace(jinja2.utils.Namespace):
        """Without names that Python itself looks up in an object."""

        def __init__(self, /, *args: Any, **named: Any):
            content = dict(*args, **named)
            for name in content:
                check(name)
            super().__init__(content)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    def check(name: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no name with an underscore in front: {name}")

    def raise_exception(message: Any) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda format: _DATE,
        "namespace": Namespace,
    }
    return environment
