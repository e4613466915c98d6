"""Chat templates with damage: the prompt holds the question, and is what Jinja alone renders."""

import json
import random
from pathlib import Path
from typing import Any

import jinja2.sandbox
from huggingface_folders import LLAMA, LLAMA_SPECIALS, llama_files

from campaign.damage import ODD_VALUES, damaged_bytes, damaged_text
from campaign.judging import Case
from campaign.tokenizer_files import files_of
from longshot_jax.data.tokenizer import Tokenizer

_TEMPLATES = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}: {{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant: {% endif %}",
    "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}",
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must "
    "alternate') }}{% endif %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% endfor %}",
    "{% set today = strftime_now('%d %b %Y') %}Today is {{ today }}.\n{% for m in messages %}{{ m.content }}\n{% endfor %}",
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
)
_PIECES = (
    "{{", "}}", "{%", "%}", "{#", "#}", "{% endfor %}", "{% endif %}", "{% else %}", "{{ raise_exception('no') }}", "| upper", "| trim",
    "| length", "| tojson", "[0]", "[:5]", "messages", ".content", "-", "'", "\n", "{{ question }}", "{{ 1 / 0 }}", "{{ x.y.z }}",
    "{{ 'x' * 3000000 }}", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "{% break %}",
    "{% generation %}", "{{ eos_token }}", "{{ messages.pop() }}", "{{ ''.__class__ }}", "{% include 'x' %}", "<|eot_id|>", "\u2028",
    "{{ strftime_now('%H:%M') }}", "{{ messages[-1].content }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% set m = 1 %}",
)  # fmt: skip
_QUESTIONS = ("How many clips did Natalia sell?", "Is Tom 3 + 4 = 7 {{ x }} \\n 'ü'?")


class Templates:
    name, share = "templates", 0.03

    def __init__(self, folder: Path) -> None:
        llama_files(folder, LLAMA_SPECIALS, **LLAMA)
        self.files = files_of(folder)

    def case(self, rng: random.Random, folder: Path) -> Case:
        template, what = rng.choice(_TEMPLATES), "undamaged"
        harmless = rng.random() < 0.1
        if not harmless:
            what, template = damaged_text(rng, template, _PIECES)
        files, stored = dict(self.files), rng.choice(["jinja", "jinja", "config", "list"])
        if stored == "jinja":
            files["chat_template.jinja"] = template.encode()
            if not harmless and rng.random() < 0.1:
                what, files["chat_template.jinja"] = damaged_bytes(rng, files["chat_template.jinja"])
                template = files["chat_template.jinja"].decode(errors="replace")
        else:
            content = json.loads(files["tokenizer_config.json"])
            content["chat_template"] = [{"name": "default", "template": template}] if stored == "list" else template
            if not harmless and rng.random() < 0.1:
                what, content["chat_template"] = "another type", rng.choice(ODD_VALUES)
                template = content["chat_template"] if isinstance(content["chat_template"], str) else ""
            files["tokenizer_config.json"] = json.dumps(content).encode()
        for name, data in files.items():
            (folder / name).write_bytes(data)

        def read() -> list[str]:
            tokenizer = Tokenizer.load(str(folder))
            return [tokenizer.decode_literally(tokenizer.encode_question(question)) for question in _QUESTIONS]

        def wrong(prompts: list[str]) -> str | None:
            for prompt, question in zip(prompts, _QUESTIONS, strict=True):
                if _letters(question) not in _letters(prompt):
                    return f"the prompt lacks the question: {prompt[:200]!r}"
                rendered = [_rendered(template, form) for form in (question, [{"type": "text", "text": question}])]
                if (
                    template
                    and any(rendered)
                    and prompt not in {begin + text for text in rendered for begin in ("", LLAMA["bos_token"])}
                ):
                    return f"the prompt is {prompt[:200]!r}, but Jinja renders {rendered[0][:200]!r}"
            return None

        return Case(f"{stored}, {what}: {template[:300]!r}", read, wrong, (str(folder),), harmless)


def _letters(text: str) -> str:
    return "".join(text.split())


def _rendered(template: str, content: Any) -> str:
    """What Jinja's sandbox makes of a template, with the names that transformers gives; "" where it fails."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda _: "26 Jul 2024"
    messages = [{"role": "user", "content": content}]
    try:
        return environment.from_string(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **LLAMA
        )
    except Exception:  # a damaged template is a program, and may raise anything; the package must refuse it
        return ""
