"""One to three chains in a question: PPO learns how many trajectories each question needs, from a price for each.

What it is for: the number of trajectories as an action. The curriculum gives each chain a trajectory of its own, by labels. PPO
is never told how many chains a question has: it earns 1 for all results right, less 0.2 for each trajectory.

What it reaches (docs/results/parallel.md): five seeds, 2,000 held-out questions. As many trajectories as chains for every question (in one
seed for all but two), and 99.4 to 100.0 % with all results right. The curriculum alone, whose numbers are given, reaches 97.8 to 98.5 %, PPO with always
three trajectories 99.2 to 99.9 % (three seeds each, earlier runs). The best checkpoint is chosen by accuracy alone, and an earlier one may be as accurate with
more trajectories, so evaluate the latest.

With up to five chains PPO first learns with always five trajectories, and the choice comes after that: straight from the curriculum one of
two seeds did as well, and the other gave up on questions of five (docs/results/parallel.md, "Up to five trajectories").

Cost: eight minutes on one idle CPU core (seed 0: 473 s for 2,000 updates of 64 questions and 200 iterations of PPO), 15 to 31 on a busy one.

    python scripts/train.py --config configs/threads_mixed.py
    python scripts/eval.py --checkpoint runs/threads_mixed --which latest --num_trajectories 0 --output mixed.json
"""

from longshot_jax.config import extend


def get_config():
    config = extend("threads.py")
    config.phases = ("curriculum", "ppo")
    # With two layers one of two seeds did not learn to write three chains as text.
    config.model.num_hidden_layers = 4
    config.curriculum.optimizer.learning_rate = 1e-3
    config.curriculum.optimizer.navigator_learning_rate = 1e-3
    config.curriculum.last_stage_loss = 0.03  # at a constant rate the loss swings, and PPO adds the rest

    config.data.threads = (1, 2, 3)
    config.data.prompt_length = 60
    config.data.answer_length = 7
    config.thoughts.roles = 3
    config.thoughts.max_trajectories = 3

    ppo = config.ppo
    ppo.num_trajectories = 3
    ppo.shared_reward = True
    ppo.rewards.trajectory_cost = 0.2
    # At 3e-4 ratios of answer tokens reached 20 to 160, and accuracy fell in some runs. Without an entropy bonus one of three
    # seeds fixed its choice while it was still wrong.
    ppo.optimizer.learning_rate = 1e-4
    ppo.entropy_coefficient = 0.1
    return config
