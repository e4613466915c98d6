"""One to three chains in a question: PPO learns how many trajectories each question needs, from a price for each.

What it is for: the number of trajectories as an action. The curriculum gives each chain a trajectory of its own, by labels. PPO
is never told how many chains a question has: it earns 1 for all results right, less 0.2 for each trajectory.

What it reaches (docs/results.md): two seeds, 2,000 held-out questions. As many trajectories as chains for every question, and 99.5 and
99.3 % with all results right; the curriculum alone 98.5 and 97.8 %, PPO with always three trajectories 99.9 and 98.8 %. The
checkpoints of the second half are about as accurate as one another and use ever fewer trajectories; the best is chosen by accuracy
alone, so evaluate the latest.

Cost: 2,000 and 2,527 updates of 64 questions, 13 and 16 minutes on one busy CPU core; PPO two to four minutes more.

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

    config.ppo.num_trajectories = 3
    config.ppo.shared_reward = True
    # At 0.1 a second trajectory beside a single chain cost too little to be given up within 200 iterations.
    config.ppo.rewards.trajectory_cost = 0.2
    return config
