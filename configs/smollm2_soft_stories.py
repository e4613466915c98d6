"""SmolLM2-135M-Instruct that reasons in soft tokens, on a laptop: word problems of one to three operations on numbers up to 99.

What it is for: thoughts of a pretrained Llama that its answers read, with steps of any length. A base for your own problems.

- `text`: the steps as equations in text.
- `curriculum`: every token of the steps becomes a thought (`c_thought = 0`), the mean of all token embeddings by their
  probabilities. A model that is certain of its text thinks the same without any training, so only the stop head learns: to
  stop where the steps would end.

What it reaches (docs/results/pretrained.md, 1,000 held-out questions, seeds 0 and 1): 83.6 and 82.9 % with thoughts that stop by themselves; with
replaced thoughts at most 3.7 and 12.8 %. In text 84.5 and 84.6 %.

Cost: 9 GB and 50 minutes of one CPU core.

    python scripts/train.py --config configs/smollm2_soft_stories.py --workdir runs/soft_stories
    python scripts/eval.py --checkpoint runs/soft_stories --thoughts own --num_trajectories 0 --output soft_stories.json
"""

from longshot_jax.config import extend


def get_config():
    config = extend("smollm2_digits.py")
    config.data.operations = (1, 2, 3)
    config.data.largest_number = 99
    config.data.equations = True
    config.data.answer_length = 48
    config.text.max_steps = 600
    config.ppo.max_thoughts = 28  # where you add 'ppo' to the phases

    curriculum = config.curriculum
    curriculum.trainable = "navigator"
    curriculum.c_thought = 0
    curriculum.thought_slots = 28
    curriculum.stages = (3,)
    curriculum.max_latent_stage = 3
    curriculum.guidance.stop = 1.0
    curriculum.optimizer.navigator_learning_rate = 2e-3
    return config
