r"""Colour a graph's nodes with three colours: seven nodes, four thoughts, many right answers and 4,000 different problems.

What it is for: a question whose right answers differ, on which learned noise was tried (GRAM: a prior over thoughts, trained by
a variational bound). As it stands it is the deterministic arm; the commands in docs/results/learned_noise.md make the other. All steps are replaced by
thoughts from the start: a first try with the steps written learned less (8 nodes, two layers: 12.9 % of validation questions after 1,500
updates).

What it reaches (docs/results/learned_noise.md): 37.3 and 37.8 % of 1,000 held-out graphs (two seeds), 43.8 and 40.6 % with 600 more
updates of the curriculum. Learned noise adds nothing: the same answers, and the value head does not choose a right one of eight.

Cost: 4 to 6 minutes of curriculum and 3 to 8 of PPO, on one CPU core with two to four other runs.

    python scripts/train.py --config configs/colouring.py
    python scripts/eval.py --checkpoint runs/colouring --num_trajectories 8 --output colouring.json
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("curriculum", "ppo")
    config.markers = "answer"

    config.model.hidden_size = 64
    config.model.intermediate_size = 128
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 4
    config.model.rope_theta = 10_000.0

    config.data.train = "colouring"
    config.data.test = "colouring"
    config.data.tokenizer = "colouring"
    config.data.nodes = (7,)
    config.data.generated_train = 4000
    config.data.prompt_length = 21  # 2 (3 V // 2) + 1
    config.data.answer_length = 16  # V steps and V colours, marker and end

    config.thoughts.feedback = "hidden"
    config.thoughts.normalised = True
    config.thoughts.reasoning_dim = 64

    curriculum = config.curriculum
    curriculum.stages = (5,)  # above max_latent_stage: all steps are replaced
    curriculum.max_latent_stage = 4
    curriculum.uniform_prob = 0.0
    curriculum.batch_size = 64
    curriculum.epochs_per_stage = 100
    curriculum.max_steps_per_stage = 1200
    curriculum.variational.std = 0.1  # where variational.kl is set
    curriculum.variational.balance = 0.8
    curriculum.optimizer.learning_rate = 2e-3
    curriculum.optimizer.navigator_learning_rate = 2e-3
    curriculum.optimizer.b2 = 0.98

    ppo = config.ppo
    ppo.iterations = 100
    ppo.questions = 64
    ppo.num_trajectories = 8
    ppo.minibatches = 2
    ppo.gradient = "pathwise"
    ppo.thought_std = (0.2, 0.2)
    ppo.gae_lambda = 1.0
    ppo.entropy_coefficient = 0.0
    ppo.kl_coefficient = 0.0
    ppo.min_thoughts = 4
    ppo.max_thoughts = 4
    ppo.answer_length = 9
    ppo.optimizer.learning_rate = 3e-4
    ppo.optimizer.navigator_learning_rate = 2e-3
    ppo.optimizer.b2 = 0.98

    config.data.generated_test = 1000
    config.evaluation.questions = 256
    config.evaluation.batch_size = 256
    config.evaluation.every = 400
    config.evaluation.every_iterations = 50
    config.checkpoint.every = 1000
    return config
