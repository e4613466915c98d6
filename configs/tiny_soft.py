"""The demonstration's task from scratch in soft tokens: steps in text, then as thoughts, then PPO by drawn tokens.

What it is for: the recipe of the pretrained models (`smollm2_gsm8k.py`, `single.py`, `multi.py`) in minutes on a laptop.

- `text`: each step as one token, ended on purpose before chains of four operations are learned.
- `curriculum`: each of these tokens becomes a thought, without training the backbone; the stop head learns where they end.
- `ppo`: rewards for correct answers alone. A sampled thought is a drawn token.

What it reaches (2,000 validation questions, seeds 0 to 4; docs/results/pretrained.md has more): in soft tokens 82, 86, 82, 85 and 86 %, after
PPO 85, 99.9, 95, 99.5 and 94 %. In seed 0 chains of four gain 26 points, and chains of three lose 15.

Cost: one and a half to five minutes of one CPU core.

    python scripts/train.py --config configs/tiny_soft.py --workdir runs/tiny_soft
    python scripts/eval.py --checkpoint runs/tiny_soft --num_trajectories 0 --output tiny_soft.json
"""

from longshot_jax.config import extend


def get_config():
    config = extend("tiny.py")
    config.phases = ("text", "curriculum", "ppo")
    config.thoughts.feedback = "vocabulary"
    config.thoughts.noise = "tokens"

    text = config.text
    text.batch_size = 64
    text.max_steps = 3000
    text.final_loss = 0.08  # unfinished on purpose
    text.optimizer.learning_rate = 2e-3
    text.optimizer.b2 = 0.98

    curriculum = config.curriculum
    curriculum.trainable = "navigator"
    curriculum.c_thought = 0
    curriculum.thought_slots = 4
    curriculum.stages = (4,)
    curriculum.max_steps_per_stage = 200
    curriculum.last_stage_loss = 0.0
    curriculum.uniform_prob = 0.0
    curriculum.guidance.stop = 1.0

    ppo = config.ppo
    ppo.gradient = "score"
    ppo.min_thoughts = 1
    ppo.rewards.thought_cost = 0.0
    return config
