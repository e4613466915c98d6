"""The published COCONUT scheme in PyTorch (Hao et al. 2024, arXiv:2412.06769), the baseline of the benchmark.

Training: one pass per thought over the positions since the last one, with the earlier passes' sliced cache; the thought
is inserted into the embeddings; one pass over the rest follows. The head runs on every position. Generation: one
question at a time, thoughts as in training, then the whole sequence again for every token. For comparison also
`generate` of transformers: a batch, greedy, with a cache and pause tokens in place of thoughts.

One difference favours the baseline: a thought is inserted by one concatenation, where the published code builds a list
of all positions. Only this file imports PyTorch.
"""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from longshot_jax.model.llama import LlamaConfig

_SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings"),
)


def installed() -> bool:
    """Whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


class TorchCoconut:
    """A random Llama of the same shape with the published procedures, on random questions of one length."""

    def __init__(self, config: LlamaConfig, prompt_length: int, thoughts: int, answer_length: int):
        import torch  # pyright: ignore[reportMissingImports]  (an extra; the type checker runs without it)
        from transformers import LlamaConfig as HuggingFaceConfig
        from transformers import LlamaForCausalLM

        self.torch, self.thoughts, self.answer_length = torch, thoughts, answer_length
        self.prompt_length = prompt_length
        torch.manual_seed(0)
        self.model: Any = LlamaForCausalLM(HuggingFaceConfig(**{name: getattr(config, name) for name in _SHAPE}))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def _tokens(self, batch: int, length: int) -> Any:
        return self.torch.randint(3, self.model.config.vocab_size, (batch, length))

    def _pass(self, embeddings: Any, cache: Any, start: int) -> Any:
        """A forward pass over new positions from `start` on, with the cache of the earlier ones."""
        positions = self.torch.arange(start, start + embeddings.shape[1])[None]
        with warnings.catch_warnings():
            # The supported versions of transformers differ in the cache's keyword.
            warnings.simplefilter("ignore", FutureWarning)
            return self.model(
                inputs_embeds=embeddings,
                past_key_values=cache,
                position_ids=positions,
                use_cache=True,
                output_hidden_states=True,
            )

    def _think(self, embeddings: Any) -> tuple[Any, Any, list[Any]]:
        """Embeddings with the thoughts inserted, the cache before the last thought, and logits of the passes."""
        torch, start, cache, logits = self.torch, 0, None, []
        for end in range(self.prompt_length, self.prompt_length + self.thoughts):
            output = self._pass(embeddings[:, start:end], cache, start)
            cache, start = output.past_key_values, end
            logits.append(output.logits)
            thought = output.hidden_states[-1][:, -1:]
            embeddings = torch.cat([embeddings[:, :end], thought, embeddings[:, end + 1 :]], 1)
        return embeddings, cache, logits

    def step(self, batch: int) -> Callable[[], None]:
        """One AdamW update on a batch, with the loss on the answer."""
        torch = self.torch
        before = self.prompt_length + self.thoughts
        tokens = self._tokens(batch, before + self.answer_length)

        def update() -> None:
            embeddings, cache, logits = self._think(self.model.get_input_embeddings()(tokens))
            start = before - 1 if self.thoughts else 0
            rest = self._pass(embeddings[:, start:], cache, start)
            scores = torch.cat([*logits, rest.logits], 1)[:, before - 1 : -1]
            loss = torch.nn.functional.cross_entropy(
                scores.reshape(-1, scores.shape[-1]), tokens[:, before:].reshape(-1)
            )
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()

        return update

    def generate_one(self) -> Callable[[], None]:
        """Thoughts and a greedy answer for one question; each token runs the whole sequence again."""
        torch = self.torch
        tokens = self._tokens(1, self.prompt_length + self.thoughts)

        @torch.no_grad()
        def generate() -> None:
            table = self.model.get_input_embeddings()
            embeddings, *_ = self._think(table(tokens))
            for _ in range(self.answer_length):
                logits = self.model(inputs_embeds=embeddings, use_cache=False).logits
                token = logits[:, -1].argmax(-1)
                embeddings = torch.cat([embeddings, table(token)[:, None]], 1)

        return generate

    def generate_batch(self, batch: int) -> Callable[[], None]:
        """`generate` of transformers with its cache and one pause token per thought."""
        torch = self.torch
        tokens = self._tokens(batch, self.prompt_length + self.thoughts)
        length = self.answer_length

        @torch.no_grad()
        def generate() -> None:
            self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=length,
                min_new_tokens=length,
                do_sample=False,
                pad_token_id=0,
            )

        return generate
